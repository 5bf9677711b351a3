/* Without ipcd: the first process runs the runtime, the others just connect, and one of them takes
 * over when it dies. */
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

/* Serves beside another process that runs the runtime, until it is told to end. */
static void heir(void) {
    ipc_config_t config = embedded();
    service_id_t id;
    struct pollfd done;
    OK(ipc_init(&config));
    OK(ipc_receive_async(0, echo));
    OK(ipc_register_service("embedded-heir", &id));
    OK(ipc_discover_service("embedded-heir", &id));
    CHECK_IS(write(up[1], &id, sizeof id), sizeof id);
    done.fd = down[0];
    done.events = POLLIN;
    while (poll(&done, 1, 0) == 0) CHECK(ipc_poll(10) >= 0);
    OK(ipc_shutdown());
}

/* The runtime dies with the process that runs it; the heir's name and id live on. */
static void take_over(void) {
    pid_t ruler, server;
    service_id_t id, again = 0;
    char byte;
    int round;
    ruler = spawn(first);
    CHECK_IS(read(up[0], &byte, 1), 1);
    server = spawn(heir);
    CHECK_IS(read(up[0], &id, sizeof id), sizeof id);
    CHECK_IS(kill(ruler, SIGKILL), 0);
    CHECK_IS(waitpid(ruler, NULL, 0), ruler);
    for (round = 0; round < 3; round++) {
        /* Who only asks does not take over: it waits until the heir has. */
        while (ipc_init(NULL) == IPC_ENORUNTIME) poll(NULL, 0, 1);
        OK(ipc_wait_service("embedded-heir", 10000, &again));
        CHECK_IS(again, id);
        ask(again, "who rules?", "who rules?");
        CHECK_IS(ipc_discover_service("embedded-first", &again), IPC_ENOENT);
        OK(ipc_shutdown());
    }
    CHECK_IS(write(down[1], "d", 1), 1);
    join(server);
    CHECK_IS(read(down[0], &byte, 1), 1);
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
    CHECK_IS(read(down[0], &byte, 1), 1);
    take_over();
    snprintf(path, sizeof path, "rm -r %s", directory);
    CHECK_IS(system(path), 0);
    return 0;
}
