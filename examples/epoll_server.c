/* A service in an event loop of its own: epoll waits for libipc, for a timer and for signals.
 *
 *   cc epoll_server.c -o epoll_server $(pkg-config --cflags --libs libipc)
 *   ./epoll_server [NAME]      serves NAME ("echo" unless given), until SIGINT or SIGTERM
 *
 * The same goes for poll(2), libuv, glib and other loops: watch ipc_fd for reading, and call
 * ipc_poll(0) when it is readable. */
#define _POSIX_C_SOURCE 200809L

#include <ipc.h>

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

static unsigned long served, ticks;

/* Runs inside ipc_poll, so in the loop's thread: no lock is needed for what is ours. */
static void on_message(const ipc_message_t *msg, void *user_data) {
    (void)user_data;
    if (msg->type == MSG_REQUEST && ipc_reply(msg, msg->payload, msg->payload_size) == IPC_OK)
        served++;
}

static int watch(int epoll, int fd) {
    struct epoll_event event;
    memset(&event, 0, sizeof event);
    /* With EPOLLET it works as well: what ipc_poll(0) leaves makes a new edge. */
    event.events = EPOLLIN;
    event.data.fd = fd;
    return epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
}

/* Every tenth of a second. */
static int ticker(void) {
    int fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    struct itimerspec every;
    every.it_value.tv_sec = every.it_interval.tv_sec = 0;
    every.it_value.tv_nsec = every.it_interval.tv_nsec = 100 * 1000 * 1000;
    return fd < 0 || timerfd_settime(fd, 0, &every, NULL) < 0 ? -1 : fd;
}

/* Returns a status of libipc, or 0 after a signal. */
static int loop(int epoll, int timer, int signals) {
    for (;;) {
        struct epoll_event events[8];
        int i, rc, count = epoll_wait(epoll, events, 8, -1);
        for (i = 0; i < count; i++) {
            if (events[i].data.fd == timer) {
                uint64_t expired;
                if (read(timer, &expired, sizeof expired) == (ssize_t)sizeof expired)
                    ticks += (unsigned long)expired;
            } else if (events[i].data.fd == signals) {
                return 0;
            } else if ((rc = ipc_poll(0)) < 0) {
                return rc;
            }
        }
    }
}

int main(int argc, char **argv) {
    const char *name = argc > 1 ? argv[1] : "echo";
    int epoll = epoll_create1(EPOLL_CLOEXEC), timer = ticker(), signals, fd, rc;
    service_id_t id;
    sigset_t mask;

    /* Before ipc_init: its thread then has them blocked, too. */
    sigemptyset(&mask);
    sigaddset(&mask, SIGINT);
    sigaddset(&mask, SIGTERM);
    sigprocmask(SIG_BLOCK, &mask, NULL);
    signals = signalfd(-1, &mask, SFD_NONBLOCK | SFD_CLOEXEC);

    if ((rc = ipc_init(NULL)) || (rc = ipc_receive_async(0, on_message)) ||
        (rc = ipc_register_service(name, &id)) || (rc = fd = ipc_fd()) < 0) {
        fprintf(stderr, "epoll_server: %s\n", ipc_strerror(rc));
        return 1;
    }
    if (watch(epoll, fd) || watch(epoll, timer) || watch(epoll, signals)) {
        perror("epoll_server");
        return 1;
    }
    printf("serving \"%s\" as instance %u\n", name, (unsigned)id);
    fflush(stdout);

    rc = loop(epoll, timer, signals);
    if (rc) fprintf(stderr, "epoll_server: %s\n", ipc_strerror(rc));
    printf("%lu calls served, %lu ticks\n", served, ticks);
    /* The descriptor belongs to the library, and goes with it. */
    ipc_shutdown();
    close(signals);
    close(timer);
    close(epoll);
    return rc ? 1 : 0;
}
