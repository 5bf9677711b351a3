/* A peer that is killed: each call ends at once, and says whether the request was taken. */
#include "check.h"

#include <time.h>

static int tell[2], told[2];

static void wait_to_be_killed(void) {
    for (;;) pause();
}

static void hold(const ipc_message_t *msg, void *user_data) {
    (void)user_data;
    if (msg->payload_size == 4) {
        CHECK_IS(write(tell[1], "t", 1), 1);
        wait_to_be_killed();
    }
    OK(ipc_reply(msg, msg->payload, msg->payload_size));
}

/* Serves; "hang" makes it tell that it has it, and hang. */
static void serve_and_hang(void) {
    service_id_t id;
    OK(ipc_init(NULL));
    OK(ipc_receive_async(0, hold));
    OK(ipc_register_service("death", &id));
    CHECK_IS(write(tell[1], &id, sizeof id), sizeof id);
    ipc_run();
}

/* Takes one message, then nothing more. */
static void serve_once(void) {
    service_id_t id;
    OK(ipc_init(NULL));
    OK(ipc_receive_async(0, hold));
    OK(ipc_register_service("death-once", &id));
    CHECK_IS(write(tell[1], &id, sizeof id), sizeof id);
    while (ipc_poll(SOON_MS) == 0) {}
    CHECK_IS(write(tell[1], "t", 1), 1);
    wait_to_be_killed();
}

static service_id_t instance_of(void) {
    service_id_t id = 0;
    CHECK_IS(read(tell[0], &id, sizeof id), sizeof id);
    CHECK(id != 0);
    return id;
}

static void await_told(void) {
    char byte;
    CHECK_IS(read(tell[0], &byte, 1), 1);
}

static void kill_now(pid_t pid) {
    int status;
    CHECK_IS(kill(pid, SIGKILL), 0);
    CHECK_IS(waitpid(pid, &status, 0), pid);
    CHECK(WIFSIGNALED(status));
}

static int call_status(service_id_t service, const char *text) {
    void *response = NULL;
    size_t size = 4711;
    int status = ipc_call(service, text, strlen(text), &response, &size, SOON_MS);
    CHECK(status == IPC_OK || (response == NULL && size == 4711));
    if (status == IPC_OK) ipc_free(response);
    return status;
}

static int ends[2];
static void on_end(int status, const ipc_message_t *reply, void *user_data) {
    CHECK(reply == NULL);
    *(int *)user_data = status;
}

/* Kills a process as soon as it says that it took the request of the call that blocks us. */
static void *kill_when_told(void *pid) {
    await_told();
    CHECK_IS(kill(*(pid_t *)pid, SIGKILL), 0);
    return NULL;
}

int main(void) {
    pid_t server;
    pthread_t killer;
    service_id_t name, instance, old;
    int status;
    CHECK_IS(pipe(tell), 0);
    CHECK_IS(pipe(told), 0);

    /* Taken: it may have acted. */
    server = spawn(serve_and_hang);
    instance = instance_of();
    OK(ipc_init(NULL));
    name = find("death");
    ask(name, "alive", "alive");
    ask(instance, "alive", "alive");
    CHECK_IS(pthread_create(&killer, NULL, kill_when_told, &server), 0);
    CHECK_IS(call_status(name, "hang"), IPC_EMAYBE);
    CHECK_IS(pthread_join(killer, NULL), 0);
    CHECK_IS(waitpid(server, &status, 0), server);
    old = instance;

    /* Nobody serves the name now; the instance is gone for good. */
    CHECK_IS(call_status(instance, "x"), IPC_EPEERDIED);
    status = call_status(name, "x");
    CHECK(status == IPC_ENOENT || status == IPC_EPEERDIED);

    /* The same id leads to the next one who serves the name. */
    server = spawn(serve_and_hang);
    instance = instance_of();
    CHECK(instance != old);
    CHECK_IS(find("death"), name);
    ask(name, "again", "again");
    ask(instance, "again", "again");
    status = call_status(old, "x");
    CHECK(status == IPC_EPEERDIED || status == IPC_ENOENT);

    /* The same, seen by callbacks. */
    OK(ipc_send_async_ex(name, "hang", 4, PRIORITY_NORMAL, SOON_MS, on_end, &ends[0], NULL));
    await_told();
    OK(ipc_send_async_ex(name, "later", 5, PRIORITY_NORMAL, SOON_MS, on_end, &ends[1], NULL));
    kill_now(server);
    POLL_UNTIL(ends[0] != 0 && ends[1] != 0);
    CHECK_IS(ends[0], IPC_EMAYBE);
    CHECK(ends[1] == IPC_EPEERDIED || ends[1] == IPC_EMAYBE);

    /* Not taken: repeating is safe. */
    server = spawn(serve_once);
    instance = instance_of();
    name = find("death-once");
    ask(name, "first", "first");
    await_told();
    memset(ends, 0, sizeof ends);
    OK(ipc_send_async_ex(name, "second", 6, PRIORITY_NORMAL, SOON_MS, on_end, &ends[0], NULL));
    kill_now(server);
    POLL_UNTIL(ends[0] != 0);
    CHECK_IS(ends[0], IPC_EPEERDIED);

    OK(ipc_shutdown());
    return 0;
}
