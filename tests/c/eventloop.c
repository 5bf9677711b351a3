/* Two processes that live in poll(2), with ipc_fd among other descriptors. */
#include "check.h"

#include <poll.h>

#define CALLS 30

static int quit[2];
static int handled, ended;

static void count_and_echo(const ipc_message_t *msg, void *user_data) {
    echo(msg, user_data);
    handled++;
}

/* Waits for either descriptor; says whether ours had work. */
static int wait_for_work(int other) {
    struct pollfd fds[2];
    fds[0].fd = ipc_fd();
    fds[0].events = POLLIN;
    fds[1].fd = other;
    fds[1].events = POLLIN;
    CHECK(poll(fds, 2, SOON_MS) > 0);
    return (fds[0].revents & POLLIN) != 0;
}

static void serve_in_loop(void) {
    service_id_t id;
    char byte;
    int status;
    OK(ipc_init(NULL));
    OK(ipc_receive_async(0, count_and_echo));
    OK(ipc_register_service("eventloop", &id));
    for (;;) {
        if (wait_for_work(quit[0])) {
            do {
                CHECK((status = ipc_poll(0)) >= 0);
            } while (status > 0);
        } else {
            CHECK_IS(read(quit[0], &byte, 1), 1);
            break;
        }
    }
    CHECK_IS(handled, 3 * CALLS);
    OK(ipc_shutdown());
}

static void on_end(int status, const ipc_message_t *reply, void *user_data) {
    (void)user_data;
    OK(status);
    CHECK_IS(reply->payload_size, 4);
    ended++;
}

int main(void) {
    pid_t server;
    service_id_t service;
    int i, never[2];
    CHECK_IS(pipe(quit), 0);
    CHECK_IS(pipe(never), 0);
    server = spawn(serve_in_loop);
    OK(ipc_init(NULL));
    service = find("eventloop");

    /* One at a time: the service sleeps in poll(2) in between, and so do we. */
    for (i = 0; i < CALLS; i++) {
        OK(ipc_send_async(service, "call", 4, on_end));
        while (ended <= i) {
            CHECK(wait_for_work(never[0]));
            CHECK(ipc_poll(0) >= 0);
        }
    }
    /* All at once. */
    for (i = 0; i < CALLS; i++) OK(ipc_send_async(service, "call", 4, on_end));
    while (ended < 2 * CALLS) {
        CHECK(wait_for_work(never[0]));
        CHECK(ipc_poll(0) >= 0);
    }
    /* And with calls that wait in place. */
    for (i = 0; i < CALLS; i++) ask(service, "call", "call");

    /* An ipc_stop is work, too. */
    while (ipc_poll(0) != 0) {}
    OK(ipc_stop());
    CHECK(wait_for_work(never[0]));
    CHECK_IS(ipc_poll(0), IPC_ECANCELED);

    CHECK_IS(write(quit[1], "q", 1), 1);
    join(server);
    OK(ipc_shutdown());
    return 0;
}
