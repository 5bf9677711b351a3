/* Events: published by one process, handled by several, in ipc_poll, in ipc_run, and in a foreign
 * loop; and all ways to ask for something else. */
#include "check.h"

#include <poll.h>

#define EVENTS 1000

static int seen, go[2], done[2];

/* Counts what comes in order. */
static void count(event_type_t type, const void *data, size_t size, void *user_data) {
    int number;
    CHECK_IS(type, 7);
    CHECK_IS(size, sizeof number);
    CHECK(data != NULL);
    memcpy(&number, data, sizeof number);
    CHECK_IS(number, seen);
    CHECK(user_data == &seen);
    CHECK_IS(ipc_poll(0), IPC_EREENTRANT);
    seen++;
}

static void publish(int from, int to) {
    for (; from < to; from++) OK(ipc_broadcast_event(7, &from, sizeof from));
}

/* Subscribes, says so, and handles all events while it sleeps in between. */
static void subscriber(void) {
    uint64_t lost = 1;
    OK(ipc_init(NULL));
    OK(ipc_subscribe_event_ex(7, count, &seen));
    CHECK_IS(write(done[1], "r", 1), 1);
    while (seen < EVENTS) CHECK(ipc_poll(SOON_MS) > 0);
    OK(ipc_event_losses(7, &lost));
    CHECK_IS(lost, 0);
    OK(ipc_shutdown());
}

static void stop_at_end(event_type_t type, const void *data, size_t size, void *user_data) {
    count(type, data, size, user_data);
    if (seen == 3) OK(ipc_stop());
}

static void never(event_type_t type, const void *data, size_t size, void *user_data) {
    (void)type, (void)data, (void)size, (void)user_data;
    CHECK(0);
}

static void unsubscribe(event_type_t type, const void *data, size_t size, void *user_data) {
    (void)data, (void)user_data;
    CHECK_IS(size, 0);
    OK(ipc_unsubscribe_event(type));
    seen++;
}

/* Whoever only watches the descriptor hears of each event. */
static void in_a_foreign_loop(void) {
    struct pollfd fd;
    int n;
    seen = 0;
    fd.fd = ipc_fd();
    fd.events = POLLIN;
    CHECK(fd.fd >= 0);
    while (ipc_poll(0) > 0) {}
    for (n = 0; n < 100; n++) {
        publish(n, n + 1);
        while (seen <= n) {
            CHECK_IS(poll(&fd, 1, SOON_MS), 1);
            CHECK(ipc_poll(0) >= 0);
        }
    }
}

int main(void) {
    uint64_t lost = 5;
    char byte;
    pid_t first, second;
    CHECK_IS(ipc_broadcast_event(7, "x", 1), IPC_ENOTINIT);
    CHECK_IS(pipe(go), 0);
    CHECK_IS(pipe(done), 0);
    first = spawn(subscriber);
    second = spawn(subscriber);
    OK(ipc_init(NULL));
    CHECK_IS(read(done[0], &byte, 1), 1);
    CHECK_IS(read(done[0], &byte, 1), 1);
    publish(0, EVENTS);
    join(first);
    join(second);

    CHECK_IS(ipc_broadcast_event(0, "x", 1), IPC_EINVAL);
    CHECK_IS(ipc_broadcast_event(7, NULL, 1), IPC_EINVAL);
    CHECK_IS(ipc_broadcast_event(7, &byte, (size_t)1 << 40), IPC_EMSGSIZE);
    CHECK_IS(ipc_subscribe_event(0, never), IPC_EINVAL);
    CHECK_IS(ipc_subscribe_event(7, NULL), IPC_EINVAL);
    CHECK_IS(ipc_unsubscribe_event(7), IPC_ENOENT);
    CHECK_IS(ipc_event_losses(7, &lost), IPC_ENOENT);
    CHECK_IS(lost, 5);

    /* The later handler counts. */
    OK(ipc_subscribe_event(7, never));
    OK(ipc_subscribe_event_ex(7, stop_at_end, &seen));
    CHECK_IS(ipc_event_losses(7, NULL), IPC_EINVAL);
    seen = 0;
    publish(0, 3);
    CHECK_IS(ipc_run(), IPC_ECANCELED);
    CHECK_IS(seen, 3);

    OK(ipc_subscribe_event_ex(7, count, &seen));
    in_a_foreign_loop();

    /* From within, and then nothing more comes. */
    OK(ipc_subscribe_event(8, unsubscribe));
    OK(ipc_broadcast_event(8, NULL, 0));
    OK(ipc_broadcast_event(8, NULL, 0));
    seen = 0;
    while (seen == 0) CHECK(ipc_poll(SOON_MS) >= 0);
    CHECK_IS(ipc_poll(50), 0);
    CHECK_IS(seen, 1);
    CHECK_IS(ipc_unsubscribe_event(8), IPC_ENOENT);
    OK(ipc_unsubscribe_event(7));
    OK(ipc_shutdown());
    return 0;
}
