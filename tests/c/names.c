/* Names: what is one, what happens to what is none, who may take one. */
#include "check.h"

static void refused(const char *name) {
    service_id_t id = 4711;
    CHECK_IS(ipc_register_service(name, &id), IPC_EINVAL);
    CHECK_IS(ipc_discover_service(name, &id), IPC_EINVAL);
    CHECK_IS(ipc_wait_service(name, 1, &id), IPC_EINVAL);
    CHECK_IS(ipc_wait_service(name, 0, &id), IPC_EINVAL);
    CHECK_IS(id, 4711);
}

static void accepted(const char *name) {
    service_id_t instance = 0, found = 0, again = 0;
    CHECK_IS(ipc_discover_service(name, &found), IPC_ENOENT);
    CHECK_IS(ipc_wait_service(name, 0, &found), IPC_ETIMEDOUT);
    CHECK_IS(ipc_wait_service(name, 1, &found), IPC_ETIMEDOUT);
    CHECK_IS(found, 0);
    OK(ipc_register_service(name, &instance));
    OK(ipc_discover_service(name, &found));
    OK(ipc_wait_service(name, 1000, &again));
    CHECK(instance != 0 && found != 0 && instance != found);
    CHECK_IS(found, again);
    OK(ipc_unregister_service(instance));
    CHECK_IS(ipc_unregister_service(instance), IPC_ENOENT);
    CHECK_IS(ipc_discover_service(name, &found), IPC_ENOENT);
}

static void wait_in_vain_and_then_not(void) {
    service_id_t id = 0;
    OK(ipc_init(NULL));
    OK(ipc_wait_service("names-late", SOON_MS, &id));
    CHECK(id != 0);
    OK(ipc_shutdown());
}

int main(void) {
    char name[300];
    service_id_t first = 0, second = 0, found = 0;
    pid_t waiter = spawn(wait_in_vain_and_then_not);
    OK(ipc_init(NULL));

    refused("");
    memset(name, 'n', sizeof name);
    name[256] = 0; refused(name);
    name[299] = 0; name[256] = 'n'; refused(name);
    refused("tab\there");
    refused("line\nbreak");
    refused("\x7f");
    refused("\xc2\x85");            /* a control character of two bytes */
    refused("\xff\xfe");            /* no UTF-8 */
    refused("cut \xc3");            /* cut short */
    refused("\xed\xa0\x80");        /* a surrogate */
    refused("\xc0\xaf");            /* overlong */

    accepted("n");
    accepted("with a space / and: signs");
    accepted("\xc3\xa9\xe2\x82\xac\xf0\x9f\xa6\x80");
    memset(name, 'n', sizeof name);
    name[255] = 0; accepted(name);

    /* An exclusive name has one server, and ids are never used again. */
    OK(ipc_register_service_ex("names-exclusive", IPC_SERVICE_EXCLUSIVE, &first));
    CHECK_IS(ipc_register_service("names-exclusive", &second), IPC_EEXIST);
    CHECK_IS(second, 0);
    OK(ipc_discover_service("names-exclusive", &found));
    OK(ipc_unregister_service(first));
    OK(ipc_register_service_ex("names-exclusive", IPC_SERVICE_IDEMPOTENT, &second));
    CHECK(second != first);
    CHECK_IS(find("names-exclusive"), found);
    OK(ipc_unregister_service(second));
    OK(ipc_register_service_ex("names-dedup", IPC_SERVICE_DEDUP, &second));
    OK(ipc_unregister_service(second));
    CHECK_IS(ipc_register_service_ex("names-dedup", 8, &second), IPC_EINVAL);

    OK(ipc_register_service("names-late", &first));
    join(waiter);
    OK(ipc_shutdown());
    return 0;
}
