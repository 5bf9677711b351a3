/* Calls over sockets: by a path on which C listens, and by itself where no memory is shared. */
#include "check.h"

static char path[108], address[120];

/* Answers with by what the request came, and whether its caller has an id. */
static void on_request(const ipc_message_t *message, void *user) {
    uint32_t told[4];
    (void)user;
    told[0] = message->routing.transport;
    told[1] = message->source_service_id;
    told[2] = message->security.service_uid;
    told[3] = message->payload_size;
    OK(ipc_reply(message, told, sizeof told));
}

static void call(service_id_t dest, uint32_t transport, uint32_t told[4]) {
    uint32_t by = 77;
    size_t size = 0;
    static char large[300000];
    OK(ipc_transport(dest, &by));
    CHECK_IS(by, transport);
    OK(ipc_call_into(dest, large, sizeof large, told, 4 * sizeof *told, &size, SOON_MS));
    CHECK_IS(size, 4 * sizeof *told);
    CHECK_IS(told[0], transport);
    CHECK(told[1] != 0);
    CHECK_IS(told[2], geteuid());
    CHECK_IS(told[3], sizeof large);
}

/* A process that is told to share no memory. */
static void apart(void) {
    ipc_config_t config = IPC_CONFIG_INIT;
    uint32_t first[4], second[4];
    service_id_t by_path = 0;
    config.flags = IPC_NO_SHARED_MEMORY;
    OK(ipc_init(&config));
    call(find("socket-service"), IPC_TRANSPORT_SOCKET, first);
    OK(ipc_wait_service(address, SOON_MS, &by_path));
    call(by_path, IPC_TRANSPORT_SOCKET, second);
    /* The runtime introduced the first; the second is the service's own to name. */
    CHECK(first[1] != second[1]);
    OK(ipc_shutdown());
}

static void service(void) {
    char twice[200];
    OK(ipc_init(NULL));
    CHECK_IS(ipc_listen(NULL), IPC_EINVAL);
    CHECK_IS(ipc_listen("relative"), IPC_EINVAL);
    CHECK_IS(ipc_listen("shm://name"), IPC_EINVAL);
    CHECK_IS(ipc_listen("/no/such/directory/here"), IPC_EACCES);
    CHECK_IS(ipc_unlisten(path), IPC_ENOENT);
    CHECK_IS(ipc_unlisten(NULL), IPC_EINVAL);
    memset(twice, 'x', sizeof twice - 1);
    twice[0] = '/';
    twice[sizeof twice - 1] = 0;
    CHECK(ipc_listen(twice) < 0);
    OK(ipc_listen(path));
    CHECK_IS(ipc_listen(address), IPC_EEXIST);
    OK(ipc_unlisten(address));
    CHECK(access(path, F_OK) != 0);
    OK(ipc_listen(address));
    OK(ipc_shutdown());
    /* The last shutdown has ended it. */
    CHECK(access(path, F_OK) != 0);
    {
        service_id_t id;
        struct sigaction action;
        memset(&action, 0, sizeof action);
        action.sa_handler = stop_on_signal;
        CHECK_IS(sigaction(SIGTERM, &action, NULL), 0);
        OK(ipc_init(NULL));
        OK(ipc_receive_async(0, on_request));
        OK(ipc_listen(path));
        OK(ipc_register_service("socket-service", &id));
        CHECK_IS(ipc_run(), IPC_ECANCELED);
        OK(ipc_shutdown());
    }
}

int main(void) {
    uint32_t told[4], by = 77;
    service_id_t dest, by_path = 0;
    pid_t server, other;
    CHECK_IS(ipc_listen("/tmp/x"), IPC_ENOTINIT);
    CHECK(snprintf(path, sizeof path, "/tmp/ipc-sockets-%ld", (long)getpid()) > 0);
    CHECK(snprintf(address, sizeof address, "unix://%s", path) > 0);
    server = spawn(service);
    other = spawn(apart);
    OK(ipc_init(NULL));
    CHECK_IS(ipc_transport(0, &by), IPC_EINVAL);
    CHECK_IS(ipc_transport(4000000, &by), IPC_ENOENT);
    dest = find("socket-service");
    CHECK_IS(ipc_transport(dest, NULL), IPC_EINVAL);
    CHECK_IS(by, 77);
    call(dest, IPC_TRANSPORT_SHARED_MEMORY, told);
    OK(ipc_discover_service(address, &by_path));
    call(by_path, IPC_TRANSPORT_SOCKET, told);
    join(other);
    dismiss(server);
    CHECK(access(path, F_OK) != 0);
    CHECK_IS(ipc_transport(by_path, &by), IPC_EPEERDIED);
    OK(ipc_shutdown());
    return 0;
}
