/* Without ipcd: the first process runs the runtime, the others just connect. */
#include "check.h"

#include <poll.h>

static int up[2], down[2];

static ipc_config_t embedded(void) {
    ipc_config_t config = IPC_CONFIG_INIT;
    config.flags = IPC_EMBEDDED;
    return config;
}

/* Serves as the process that runs the runtime. */
static void first(void) {
    ipc_config_t config = embedded();
    service_id_t id;
    struct pollfd done;
    OK(ipc_init(&config));
    OK(ipc_receive_async(0, echo));
    OK(ipc_register_service("embedded-first", &id));
    CHECK_IS(write(up[1], "u", 1), 1);
    done.fd = down[0];
    done.events = POLLIN;
    while (poll(&done, 1, 0) == 0) CHECK(ipc_poll(10) >= 0);
    OK(ipc_shutdown());
}

int main(void) {
    char directory[] = "/tmp/ipc-embedded-XXXXXX", path[64], byte;
    ipc_config_t config;
    service_id_t id, again;
    pid_t server;
    int round;
    CHECK(mkdtemp(directory) != NULL);
    CHECK_IS(setenv("IPC_RUNTIME_DIR", directory, 1), 0);
    CHECK_IS(pipe(up), 0);
    CHECK_IS(pipe(down), 0);

    CHECK_IS(ipc_init(NULL), IPC_ENORUNTIME);
    server = spawn(first);
    CHECK_IS(read(up[0], &byte, 1), 1);

    /* One that asks for it as well, and one that does not: both find the first. */
    config = embedded();
    OK(ipc_init(&config));
    CHECK_IS(ipc_init(NULL), IPC_EINVAL);
    ask(find("embedded-first"), "hello", "hello");
    OK(ipc_shutdown());
    OK(ipc_init(NULL));
    OK(ipc_discover_service("embedded-first", &id));
    ask(id, "hello", "hello");

    CHECK_IS(write(down[1], "d", 1), 1);
    join(server);
    OK(ipc_shutdown());

    /* It is gone with its process, and the next one takes over. */
    CHECK_IS(ipc_init(NULL), IPC_ENORUNTIME);
    for (round = 0; round < 3; round++) {
        OK(ipc_init(&config));
        OK(ipc_register_service("embedded-alone", &again));
        CHECK(again > id);
        id = again;
        OK(ipc_discover_service("embedded-alone", &again));
        OK(ipc_shutdown());
        CHECK_IS(ipc_init(NULL), IPC_ENORUNTIME);
    }
    snprintf(path, sizeof path, "rm -r %s", directory);
    CHECK_IS(system(path), 0);
    return 0;
}
