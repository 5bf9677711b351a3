/* The conventions of the API: NULLs, sizes, before ipc_init, after ipc_shutdown, counted init. */
#include "check.h"

/* The layout that other languages rely on. A negative size does not compile. */
#define LAYOUT(name, condition) typedef char layout_##name[(condition) ? 1 : -1]
#define AT(type, member, offset) (offsetof(type, member) == (offset))
LAYOUT(enums, sizeof(message_type_t) == 4 && sizeof(priority_level_t) == 4);
LAYOUT(ids, sizeof(service_id_t) == 4 && sizeof(permission_mask_t) == 8);
LAYOUT(config, sizeof(void *) != 8 || (sizeof(ipc_config_t) == 72 && AT(ipc_config_t, max_payload, 24)));
LAYOUT(security, sizeof(security_context_t) == 120 && AT(security_context_t, permissions, 104));
LAYOUT(routing, sizeof(routing_info_t) == 56 && AT(routing_info_t, transport, 48));
LAYOUT(message, sizeof(void *) != 8 ||
    (sizeof(ipc_message_t) == 224 && AT(ipc_message_t, type, 16) && AT(ipc_message_t, payload, 40) &&
     AT(ipc_message_t, security, 48) && AT(ipc_message_t, routing, 168)));
LAYOUT(numbers, MSG_PRIORITY == 4 && PRIORITY_BACKGROUND == 4 && IPC_ESYS == -27 && IPC_EUSER == -1000);

static void ignore_message(const ipc_message_t *msg, void *user_data) { (void)msg; (void)user_data; }
static void ignore_end(int status, const ipc_message_t *reply, void *user_data) {
    (void)status; (void)reply; (void)user_data;
}

/* Whatever needs a runtime says so, and touches no out-parameter. */
static void nothing_works(int wanted) {
    service_id_t id = 4711;
    void *response = &id;
    size_t size = 4711;
    uint64_t message_id = 4711;
    char buffer[8];
    ipc_message_t message;
    memset(&message, 0, sizeof message);

    CHECK_IS(ipc_shutdown(), wanted);
    CHECK_IS(ipc_register_service("name", &id), wanted);
    CHECK_IS(ipc_register_service_ex("name", IPC_SERVICE_EXCLUSIVE, &id), wanted);
    CHECK_IS(ipc_unregister_service(1), wanted);
    CHECK_IS(ipc_discover_service("name", &id), wanted);
    CHECK_IS(ipc_wait_service("name", 0, &id), wanted);
    CHECK_IS(ipc_wait_service("name", 10, &id), wanted);
    CHECK_IS(ipc_call(1, "x", 1, &response, &size, 1000), wanted);
    CHECK_IS(ipc_call_into(1, "x", 1, buffer, sizeof buffer, &size, 1000), wanted);
    CHECK_IS(ipc_send_async(1, "x", 1, NULL), wanted);
    CHECK_IS(ipc_send_async(1, "x", 1, ignore_end), wanted);
    CHECK_IS(ipc_send_async_ex(1, "x", 1, PRIORITY_LOW, 0, ignore_end, NULL, &message_id), wanted);
    CHECK_IS(ipc_cancel(1), wanted);
    CHECK_IS(ipc_receive_async(0, ignore_message), wanted);
    CHECK_IS(ipc_receive_async_ex(0, ignore_message, NULL), wanted);
    CHECK_IS(ipc_reply(&message, "x", 1), wanted);
    CHECK_IS(ipc_reply_error(&message, -1000), wanted);
    CHECK(ipc_message_retain(&message) == NULL);
    ipc_message_release(&message);
    CHECK_IS(ipc_poll(0), wanted);
    CHECK_IS(ipc_run(), wanted);
    CHECK_IS(ipc_stop(), wanted);
    CHECK_IS(ipc_fd(), wanted);
    CHECK(id == 4711 && response == &id && size == 4711 && message_id == 4711);
}

static void what_needs_no_runtime(void) {
    int status;
    char version[32];
    for (status = 0; status >= -27; status--) {
        CHECK(strlen(ipc_strerror(status)) > 0);
        CHECK((ipc_errno(status) == 0) == (status == 0));
        CHECK(ipc_errno(status) >= 0);
        CHECK(status == 0 || strcmp(ipc_strerror(status), ipc_strerror(status + 1)) != 0);
    }
    CHECK(strstr(ipc_strerror(IPC_ENORUNTIME), "ipcd") != NULL);
    CHECK(strlen(ipc_strerror(-28)) > 0 && strlen(ipc_strerror(1)) > 0);
    CHECK(ipc_strerror(IPC_EUSER) == ipc_strerror(IPC_EUSER - 7));
    CHECK_IS(ipc_errno(IPC_ETIMEDOUT), ETIMEDOUT);
    CHECK_IS(ipc_errno(IPC_EINVAL), EINVAL);
    CHECK_IS(ipc_errno(12345), EINVAL);
    CHECK_IS(ipc_last_os_error(), 0);
    snprintf(version, sizeof version, "%d.%d.%d", IPC_VERSION_MAJOR, IPC_VERSION_MINOR, IPC_VERSION_PATCH);
    CHECK(strcmp(version, ipc_version()) == 0);
    ipc_free(NULL);
    ipc_message_release(NULL);
    CHECK(ipc_message_retain(NULL) == NULL);
}

static void bad_configurations(void) {
    const ipc_config_t init = IPC_CONFIG_INIT;
    ipc_config_t config;
    const uint32_t sizes[] = {0, 1, 4, 39, 5000, UINT32_MAX};
    struct { ipc_config_t now; uint64_t later[2]; } longer;
    size_t i;

    CHECK_IS(init.size, sizeof init);
    for (i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        config = init;
        config.size = sizes[i];
        CHECK_IS(ipc_init(&config), IPC_EINVAL);
    }
    config = init; config.flags = 32; CHECK_IS(ipc_init(&config), IPC_EINVAL);
    config = init; config.flags = IPC_NO_SPIN; config.spin_us = 1; CHECK_IS(ipc_init(&config), IPC_EINVAL);
    config = init; config.ring_cells = 65537; CHECK_IS(ipc_init(&config), IPC_EINVAL);
    config = init; config.max_payload = UINT64_MAX; CHECK_IS(ipc_init(&config), IPC_EINVAL);
    config = init; config.runtime_dir = ""; CHECK_IS(ipc_init(&config), IPC_EINVAL);
    config = init; config.reserved[3] = 1; CHECK_IS(ipc_init(&config), IPC_EINVAL);

    /* A later version of the struct is understood as long as what it adds is not used. */
    memset(&longer, 0, sizeof longer);
    longer.now = init;
    longer.now.size = (uint32_t)sizeof longer;
    longer.later[1] = 1;
    CHECK_IS(ipc_init(&longer.now), IPC_EINVAL);
    longer.later[1] = 0;
    OK(ipc_init(&longer.now));
    OK(ipc_shutdown());
    /* An earlier one, too. */
    config = init;
    config.size = (uint32_t)offsetof(ipc_config_t, reserved);
    OK(ipc_init(&config));
    OK(ipc_shutdown());
    nothing_works(IPC_ENOTINIT);
}

static void init_is_counted(void) {
    ipc_config_t config = IPC_CONFIG_INIT;
    OK(ipc_init(NULL));
    OK(ipc_init(&config));
    /* The same directory in other words. */
    config.runtime_dir = getenv("IPC_RUNTIME_DIR");
    OK(ipc_init(&config));
    config.ring_cells = 1024;
    CHECK_IS(ipc_init(&config), IPC_EINVAL);
    config.ring_cells = 0;
    config.user_data = &config;
    CHECK_IS(ipc_init(&config), IPC_EINVAL);
    OK(ipc_shutdown());
    OK(ipc_shutdown());
    CHECK_IS(ipc_poll(0), 0);
    OK(ipc_shutdown());
    CHECK_IS(ipc_shutdown(), IPC_ENOTINIT);
}

/* NULL where something is needed, and numbers out of range. */
static void bad_arguments(void) {
    service_id_t id = 4711;
    void *response = &id;
    size_t size = 4711;
    uint64_t message_id = 4711;
    char buffer[8];
    ipc_message_t message;
    memset(&message, 0, sizeof message);

    CHECK_IS(ipc_register_service(NULL, &id), IPC_EINVAL);
    CHECK_IS(ipc_register_service("name", NULL), IPC_EINVAL);
    CHECK_IS(ipc_register_service_ex("name", 8, &id), IPC_EINVAL);
    CHECK_IS(ipc_discover_service(NULL, &id), IPC_EINVAL);
    CHECK_IS(ipc_discover_service("name", NULL), IPC_EINVAL);
    CHECK_IS(ipc_wait_service(NULL, 0, &id), IPC_EINVAL);
    CHECK_IS(ipc_wait_service("name", 0, NULL), IPC_EINVAL);
    CHECK_IS(ipc_unregister_service(0), IPC_ENOENT);
    CHECK_IS(ipc_unregister_service(4000000000u), IPC_ENOENT);

    CHECK_IS(ipc_call(0, "x", 1, &response, &size, 1000), IPC_EINVAL);
    CHECK_IS(ipc_call(1, NULL, 1, &response, &size, 1000), IPC_EINVAL);
    CHECK_IS(ipc_call(1, "x", 1, NULL, &size, 1000), IPC_EINVAL);
    CHECK_IS(ipc_call(1, "x", 1, &response, NULL, 1000), IPC_EINVAL);
    CHECK_IS(ipc_call(1, "x", 1, &response, &size, 0), IPC_EINVAL);
    CHECK_IS(ipc_call(4000000000u, "x", 1, &response, &size, 1000), IPC_ENOENT);
    CHECK_IS(ipc_call_into(0, "x", 1, buffer, 8, &size, 1000), IPC_EINVAL);
    CHECK_IS(ipc_call_into(1, NULL, 1, buffer, 8, &size, 1000), IPC_EINVAL);
    CHECK_IS(ipc_call_into(1, "x", 1, NULL, 8, &size, 1000), IPC_EINVAL);
    CHECK_IS(ipc_call_into(1, "x", 1, buffer, 8, NULL, 1000), IPC_EINVAL);
    CHECK_IS(ipc_call_into(1, "x", 1, buffer, 8, &size, 0), IPC_EINVAL);
    CHECK_IS(ipc_call_into(4000000000u, NULL, 0, NULL, 0, &size, IPC_WAIT_FOREVER), IPC_ENOENT);

    CHECK_IS(ipc_send_async(0, "x", 1, NULL), IPC_EINVAL);
    CHECK_IS(ipc_send_async(1, NULL, 1, NULL), IPC_EINVAL);
    CHECK_IS(ipc_send_async(4000000000u, "x", 1, ignore_end), IPC_ENOENT);
    CHECK_IS(ipc_send_async_ex(1, "x", 1, (priority_level_t)5, 0, NULL, NULL, &message_id), IPC_EINVAL);
    CHECK_IS(ipc_send_async_ex(1, "x", 1, (priority_level_t)-1, 0, NULL, NULL, &message_id), IPC_EINVAL);
    CHECK_IS(ipc_send_async_ex(1, NULL, 1, PRIORITY_LOW, 0, NULL, NULL, &message_id), IPC_EINVAL);
    CHECK_IS(ipc_cancel(0), IPC_ENOENT);
    CHECK_IS(ipc_cancel(UINT64_MAX), IPC_ENOENT);

    CHECK_IS(ipc_reply(NULL, "x", 1), IPC_EINVAL);
    CHECK_IS(ipc_reply(&message, "x", 1), IPC_EINVAL);
    CHECK_IS(ipc_reply(&message, NULL, 1), IPC_EINVAL);
    CHECK_IS(ipc_reply_error(NULL, -1000), IPC_EINVAL);
    CHECK_IS(ipc_reply_error(&message, -1000), IPC_EINVAL);
    CHECK_IS(ipc_reply_error(&message, 0), IPC_EINVAL);
    CHECK_IS(ipc_reply_error(&message, 5), IPC_EINVAL);
    CHECK_IS(ipc_reply_error(&message, -500), IPC_EINVAL);
    CHECK(ipc_message_retain(&message) == NULL);
    ipc_message_release(&message);
    OK(ipc_receive_async(0, NULL));
    OK(ipc_receive_async(77, NULL));
    CHECK(ipc_fd() >= 0);
    CHECK_IS(ipc_fd(), ipc_fd());
    CHECK_IS(ipc_poll(0), 0);
    CHECK_IS(ipc_poll(1), 0);

    CHECK(id == 4711 && response == &id && size == 4711 && message_id == 4711);
}

int main(void) {
    int round;
    what_needs_no_runtime();
    nothing_works(IPC_ENOTINIT);
    bad_configurations();
    init_is_counted();
    for (round = 0; round < 3; round++) {
        OK(ipc_init(NULL));
        bad_arguments();
        OK(ipc_shutdown());
        nothing_works(IPC_ENOTINIT);
    }
    return 0;
}
