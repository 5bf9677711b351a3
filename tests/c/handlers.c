/* Which handler gets a message, and what becomes of those that find none. */
#include "check.h"

#include <poll.h>

static int go[2], turn[2];

/* A client that sends ten numbered messages in order, and calls; twice, the second time when told. */
static void call_in_order(void) {
    service_id_t service;
    char byte;
    unsigned char number;
    int round;
    void *response;
    size_t size;
    OK(ipc_init(NULL));
    service = find("handlers");
    for (round = 0; round < 2; round++) {
        for (number = 0; number < 10; number++)
            OK(ipc_send_async_ex(service, &number, 1, PRIORITY_NORMAL, SOON_MS, NULL, NULL, NULL));
        OK(ipc_call(service, &number, 1, &response, &size, SOON_MS));
        CHECK_IS(size, 1);
        ipc_free(response);
        CHECK_IS(read(turn[0], &byte, 1), 1);
    }
    OK(ipc_shutdown());
}

static int calls[3];
static unsigned char next_number;
static service_id_t last_source;

static void count(const ipc_message_t *msg, void *user_data) {
    ++*(int *)user_data;
    last_source = msg->source_service_id;
    if (msg->type == MSG_REQUEST) OK(ipc_reply(msg, msg->payload, msg->payload_size));
}

static void count_in_order(const ipc_message_t *msg, void *user_data) {
    CHECK_IS(msg->payload_size, 1);
    CHECK_IS(msg->payload[0], next_number++);
    count(msg, user_data);
}

static int is_readable(int timeout_ms) {
    struct pollfd fd;
    fd.fd = ipc_fd();
    fd.events = POLLIN;
    fd.revents = 0;
    CHECK(poll(&fd, 1, timeout_ms) >= 0);
    return fd.revents & POLLIN;
}

/* Without a handler messages are held, in order, and delivered as soon as there is one. */
static void held_messages(pid_t client) {
    service_id_t id;
    int rounds;
    OK(ipc_init(NULL));
    OK(ipc_register_service("handlers", &id));
    CHECK(ipc_fd() >= 0);
    /* Takes the messages in; nothing runs. */
    for (rounds = 0; rounds < 20; rounds++) CHECK_IS(ipc_poll(10), 0);
    OK(ipc_receive_async_ex(0, count_in_order, &calls[0]));
    POLL_UNTIL(calls[0] == 11);
    CHECK_IS(next_number, 11);

    /* The same, seen from an event loop: a new handler makes the descriptor readable. */
    OK(ipc_receive_async(0, NULL));
    CHECK_IS(write(turn[1], "t", 1), 1);
    for (rounds = 0; rounds < 20; rounds++) CHECK_IS(ipc_poll(10), 0);
    next_number = 0;
    calls[0] = 0;
    OK(ipc_receive_async_ex(0, count_in_order, &calls[0]));
    do {
        CHECK(is_readable(SOON_MS));
    } while (ipc_poll(0) == 0);
    POLL_UNTIL(calls[0] == 11);
    CHECK_IS(write(turn[1], "t", 1), 1);
    join(client);
    OK(ipc_shutdown());
}

/* A client that also serves, so that it has two ids, and asks when told to. */
static int answers[2];
static void call_when_told(void) {
    service_id_t service, own;
    char byte;
    OK(ipc_init(NULL));
    OK(ipc_register_service("handlers-client", &own));
    service = find("handlers");
    while (read(go[0], &byte, 1) == 1 && byte != 'q') {
        ask(service, "x", "x");
        CHECK_IS(write(answers[1], "a", 1), 1);
    }
    OK(ipc_shutdown());
}

static void tell_and_serve(void) {
    struct pollfd done;
    char byte;
    done.fd = answers[0];
    done.events = POLLIN;
    CHECK_IS(write(go[1], "c", 1), 1);
    do {
        CHECK(ipc_poll(10) >= 0);
    } while (poll(&done, 1, 0) == 0);
    CHECK_IS(read(answers[0], &byte, 1), 1);
}

static void specific_before_general(pid_t client) {
    service_id_t id, name, source;
    OK(ipc_init(NULL));
    OK(ipc_register_service("handlers", &id));
    name = find("handlers-client");
    memset(calls, 0, sizeof calls);

    OK(ipc_receive_async_ex(0, count, &calls[0]));
    tell_and_serve();
    CHECK(calls[0] == 1 && calls[1] == 0 && calls[2] == 0);
    source = last_source;
    CHECK(source != 0 && source != name);

    OK(ipc_receive_async_ex(name, count, &calls[1]));
    tell_and_serve();
    CHECK(calls[0] == 1 && calls[1] == 1 && calls[2] == 0);

    OK(ipc_receive_async_ex(source, count, &calls[2]));
    OK(ipc_receive_async_ex(4711, count, &calls[0]));
    tell_and_serve();
    CHECK(calls[0] == 1 && calls[1] == 1 && calls[2] == 1);

    OK(ipc_receive_async(source, NULL));
    tell_and_serve();
    CHECK(calls[0] == 1 && calls[1] == 2 && calls[2] == 1);

    OK(ipc_receive_async(name, NULL));
    tell_and_serve();
    CHECK(calls[0] == 2 && calls[1] == 2 && calls[2] == 1);

    CHECK_IS(write(go[1], "q", 1), 1);
    join(client);
    OK(ipc_shutdown());
}

/* More than the bound: the rest is refused, nothing held is lost. */
#define MANY 1100
static int finished, refused;
static void on_end(int status, const ipc_message_t *reply, void *user_data) {
    (void)reply; (void)user_data;
    finished++;
    if (status != IPC_OK) {
        CHECK_IS(status, IPC_EFULL);
        refused++;
    }
}

static void flood(void) {
    service_id_t service;
    int sent = 0, status;
    OK(ipc_init(NULL));
    service = find("handlers");
    while (sent < MANY) {
        status = ipc_send_async_ex(service, "flood", 5, PRIORITY_NORMAL, IPC_WAIT_FOREVER, NULL, NULL, NULL);
        OK(status);
        sent++;
    }
    OK(ipc_send_async(service, "last", 4, on_end));
    POLL_UNTIL(finished == 1);
    CHECK_IS(refused, 1);
    OK(ipc_shutdown());
}

static void bounded(pid_t client) {
    service_id_t id;
    int status = 0;
    OK(ipc_init(NULL));
    OK(ipc_register_service("handlers", &id));
    while (waitpid(client, &status, WNOHANG) == 0) CHECK_IS(ipc_poll(1), 0);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    calls[0] = 0;
    OK(ipc_receive_async_ex(0, count, &calls[0]));
    CHECK_IS(ipc_poll(0), 1024);
    CHECK_IS(calls[0], 1024);
    OK(ipc_shutdown());
}

int main(void) {
    CHECK_IS(pipe(go), 0);
    CHECK_IS(pipe(turn), 0);
    CHECK_IS(pipe(answers), 0);
    held_messages(spawn(call_in_order));
    specific_before_general(spawn(call_when_told));
    bounded(spawn(flood));
    return 0;
}
