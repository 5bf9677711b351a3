/* fork: the child is told, and starts anew; the parent does not notice. */
#include "check.h"

static void serve_fork(void) { serve("forked", echo); }

static void ignore_end(int status, const ipc_message_t *reply, void *user_data) {
    (void)status; (void)reply; (void)user_data;
}

static service_id_t service;
static const ipc_message_t *kept;

static void every_call_says_so(void) {
    service_id_t id = 4711;
    void *response = NULL;
    size_t size = 4711;
    char buffer[8];
    CHECK_IS(ipc_call(service, "x", 1, &response, &size, 1000), IPC_EFORK);
    CHECK_IS(ipc_call_into(service, "x", 1, buffer, sizeof buffer, &size, 1000), IPC_EFORK);
    CHECK_IS(ipc_call(service + 1, "x", 1, &response, &size, 1000), IPC_EFORK);
    CHECK_IS(ipc_send_async(service, "x", 1, NULL), IPC_EFORK);
    CHECK_IS(ipc_send_async(service, "x", 1, ignore_end), IPC_EFORK);
    CHECK_IS(ipc_cancel(1), IPC_EFORK);
    CHECK_IS(ipc_register_service("forked-child", &id), IPC_EFORK);
    CHECK_IS(ipc_unregister_service(1), IPC_EFORK);
    CHECK_IS(ipc_discover_service("forked", &id), IPC_EFORK);
    CHECK_IS(ipc_wait_service("forked", 100, &id), IPC_EFORK);
    CHECK_IS(ipc_receive_async(0, echo), IPC_EFORK);
    CHECK_IS(ipc_reply(kept, "x", 1), IPC_EFORK);
    CHECK_IS(ipc_reply_error(kept, IPC_EUSER), IPC_EFORK);
    CHECK(ipc_message_retain(kept) == NULL);
    ipc_message_release(kept);
    CHECK_IS(ipc_poll(0), IPC_EFORK);
    CHECK_IS(ipc_run(), IPC_EFORK);
    CHECK_IS(ipc_stop(), IPC_EFORK);
    CHECK_IS(ipc_fd(), IPC_EFORK);
    CHECK_IS(ipc_shutdown(), IPC_EFORK);
    CHECK(id == 4711 && size == 4711 && response == NULL);
    CHECK(strlen(ipc_strerror(IPC_EFORK)) > 0);
}

/* Forks in the middle of everything. The child ends without a look for leaks: what only the threads
 * of its parent knew looks like one, and they do not exist in it. */
static pid_t fork_and_run(void (*body)(void)) {
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        body();
        _exit(0);
    }
    return pid;
}

/* In the child of a child of a process that is in the middle of everything. */
static void grandchild(void) {
    every_call_says_so();
    OK(ipc_init(NULL));
    ask(find("forked"), "grandchild", "grandchild");
    OK(ipc_shutdown());
}

static void child(void) {
    service_id_t own;
    every_call_says_so();
    OK(ipc_init(NULL));
    CHECK_IS(ipc_reply(kept, "x", 1), IPC_EINVAL);
    /* The name's id is good here, too. */
    ask(service, "child", "child");
    OK(ipc_send_async(service, "x", 1, ignore_end));
    CHECK_IS(ipc_poll(SOON_MS), 1);
    OK(ipc_register_service("forked-child", &own));
    join(fork_and_run(grandchild));
    ask(service, "child still", "child still");
    OK(ipc_shutdown());
    CHECK_IS(ipc_shutdown(), IPC_ENOTINIT);
    /* And again. */
    OK(ipc_init(NULL));
    ask(service, "child again", "child again");
    OK(ipc_shutdown());
}

/* A child that never calls the library, and one that only ends. */
static void mute_child(void) {}

static void *call_for_ever(void *done) {
    while (!__atomic_load_n((int *)done, __ATOMIC_ACQUIRE)) ask(service, "busy", "busy");
    return NULL;
}

static int ends;
static void keep_reply(int status, const ipc_message_t *reply, void *user_data) {
    (void)user_data;
    OK(status);
    kept = ipc_message_retain(reply);
    ends++;
}

int main(void) {
    pid_t server = spawn(serve_fork);
    pthread_t caller;
    int done = 0, round;
    OK(ipc_init(NULL));
    service = find("forked");
    ask(service, "parent", "parent");
    OK(ipc_send_async(service, "keep", 4, keep_reply));
    POLL_UNTIL(ends == 1);

    join(fork_and_run(mute_child));
    join(fork_and_run(child));
    ask(service, "parent still", "parent still");

    /* Other threads may be anywhere when it happens. */
    CHECK_IS(pthread_create(&caller, NULL, call_for_ever, &done), 0);
    for (round = 0; round < 5; round++) join(fork_and_run(child));
    __atomic_store_n(&done, 1, __ATOMIC_RELEASE);
    CHECK_IS(pthread_join(caller, NULL), 0);

    CHECK_IS(kept->payload_size, 4);
    ipc_message_release(kept);
    ask(service, "parent to the end", "parent to the end");
    dismiss(server);
    OK(ipc_shutdown());
    return 0;
}
