/* A service in a foreign epoll loop, level-triggered and edge-triggered, with a timer beside: every
 * message of two clients is handled, and the descriptor is quiet when nothing is left. */
#include "check.h"

#include <sys/epoll.h>
#include <sys/timerfd.h>

#define CALLS 300
#define MESSAGES 1000

static int handled, go[2];

static void count_and_echo(const ipc_message_t *msg, void *user_data) {
    echo(msg, user_data);
    handled++;
}

/* Calls one after another, then sends many messages that nobody answers. */
static void call_and_send(void) {
    int i;
    char byte;
    service_id_t service;
    OK(ipc_init(NULL));
    service = find("epoll");
    CHECK_IS(read(go[0], &byte, 1), 1);
    for (i = 0; i < CALLS; i++) ask(service, "call", "call");
    for (i = 0; i < MESSAGES; i++)
        OK(ipc_send_async_ex(service, "more", 4, PRIORITY_NORMAL, SOON_MS, NULL, NULL, NULL));
    /* The same priority: answered after all of them. */
    ask(service, "last", "last");
    OK(ipc_shutdown());
}

static int watching(int fd, uint32_t flags) {
    struct epoll_event event;
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    CHECK(epoll >= 0);
    memset(&event, 0, sizeof event);
    event.events = EPOLLIN | flags;
    event.data.fd = fd;
    CHECK_IS(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event), 0);
    return epoll;
}

static int wait_for(int epoll, int timeout_ms) {
    struct epoll_event event;
    int count;
    do {
        count = epoll_wait(epoll, &event, 1, timeout_ms);
    } while (count < 0 && errno == EINTR);
    CHECK(count >= 0);
    return count == 1 ? event.data.fd : -1;
}

/* One ipc_poll for each time that the descriptor is said to be readable. */
static void serve_in_epoll(uint32_t flags) {
    const int wanted = 2 * (CALLS + MESSAGES + 1);
    struct itimerspec every = {{0, 1000000}, {0, 1000000}};
    struct epoll_event event;
    int ticks = 0, fd = ipc_fd(), epoll = watching(fd, flags);
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
    memset(&event, 0, sizeof event);
    event.events = EPOLLIN;
    event.data.fd = timer;
    CHECK_IS(epoll_ctl(epoll, EPOLL_CTL_ADD, timer, &event), 0);
    CHECK_IS(timerfd_settime(timer, 0, &every, NULL), 0);
    handled = 0;
    CHECK_IS(write(go[1], "gg", 2), 2);
    while (handled < wanted || ticks == 0) {
        int ready = wait_for(epoll, SOON_MS);
        CHECK(ready >= 0);
        if (ready == timer) {
            uint64_t expired;
            CHECK_IS(read(timer, &expired, sizeof expired), sizeof expired);
            ticks++;
        } else {
            CHECK(ipc_poll(0) >= 0);
        }
    }
    CHECK_IS(handled, wanted);
    close(timer);
    close(epoll);
}

/* The clients are gone, and everything was served. */
static void be_quiet(uint32_t flags) {
    int epoll = watching(ipc_fd(), flags);
    while (wait_for(epoll, 100) >= 0) CHECK_IS(ipc_poll(0), 0);
    CHECK_IS(wait_for(epoll, 0), -1);
    close(epoll);
}

int main(void) {
    static const uint32_t flags[2] = {0, (uint32_t)EPOLLET};
    pid_t clients[4];
    service_id_t id;
    int i;
    CHECK_IS(pipe(go), 0);
    for (i = 0; i < 4; i++) clients[i] = spawn(call_and_send);
    OK(ipc_init(NULL));
    OK(ipc_receive_async(0, count_and_echo));
    OK(ipc_register_service("epoll", &id));
    for (i = 0; i < 2; i++) serve_in_epoll(flags[i]);
    for (i = 0; i < 4; i++) join(clients[i]);
    for (i = 0; i < 2; i++) be_quiet(flags[i]);
    OK(ipc_shutdown());
    return 0;
}
