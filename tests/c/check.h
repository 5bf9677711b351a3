/* What the C tests share: checks that say what they saw, and a second process.
 *
 * Include it first. Each program exits 0 when everything held, and prints the first thing that did
 * not. scripts/c-tests.sh compiles them as C99, C11 and C++17, and runs them. */
#ifndef CHECK_H
#define CHECK_H

#ifndef _GNU_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif

#include <ipc.h>

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

/* For what has to come: long enough for Valgrind on a busy machine. */
#define SOON_MS 30000

#define CHECK(condition)                                                                \
    do {                                                                                \
        if (!(condition)) {                                                             \
            fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition);   \
            exit(1);                                                                    \
        }                                                                               \
    } while (0)

#define CHECK_IS(got, wanted)                                                           \
    do {                                                                                \
        long long got_ = (long long)(got), wanted_ = (long long)(wanted);               \
        if (got_ != wanted_) {                                                          \
            fprintf(stderr, "%s:%d: %s is %lld, not %lld (errno %d)\n", __FILE__, __LINE__, \
                    #got, got_, wanted_, ipc_last_os_error());                          \
            exit(1);                                                                    \
        }                                                                               \
    } while (0)

#define OK(call) CHECK_IS(call, IPC_OK)

/* Starts a second process; call it before ipc_init. The process exits 0 after its body. (In a child
 * of a process with threads, the memory that only those knew counts as lost: see forked.c.) */
static inline pid_t spawn(void (*body)(void)) {
    pid_t pid;
    fflush(NULL);
    pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        /* Not left over when a check fails in the first process. */
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        body();
        exit(0);
    }
    return pid;
}

/* Waits for the end of a second process, which must be in order. */
static inline void join(pid_t pid) {
    int status = 0;
    CHECK_IS(waitpid(pid, &status, 0), pid);
    CHECK(WIFEXITED(status));
    CHECK_IS(WEXITSTATUS(status), 0);
}

static inline void stop_on_signal(int signal) {
    (void)signal;
    ipc_stop();
}

/* Serves a name until SIGTERM comes. */
static inline void serve(const char *name, message_handler_t handler) {
    service_id_t id;
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = stop_on_signal;
    CHECK_IS(sigaction(SIGTERM, &action, NULL), 0);
    OK(ipc_init(NULL));
    OK(ipc_receive_async(0, handler));
    OK(ipc_register_service(name, &id));
    CHECK_IS(ipc_run(), IPC_ECANCELED);
    OK(ipc_shutdown());
}

/* Ends a process that serves. */
static inline void dismiss(pid_t pid) {
    CHECK_IS(kill(pid, SIGTERM), 0);
    join(pid);
}

/* The id of a name that some process is about to serve. */
static inline service_id_t find(const char *name) {
    service_id_t id = 0;
    OK(ipc_wait_service(name, SOON_MS, &id));
    CHECK(id != 0);
    return id;
}

/* A handler that answers with what it was sent. */
static inline void echo(const ipc_message_t *msg, void *user_data) {
    (void)user_data;
    if (msg->type == MSG_REQUEST) OK(ipc_reply(msg, msg->payload, msg->payload_size));
}

/* Calls with a short text, and checks the answer to be another. */
static inline void ask(service_id_t dest, const char *text, const char *wanted) {
    void *response = NULL;
    size_t size = 0;
    OK(ipc_call(dest, text, strlen(text), &response, &size, SOON_MS));
    CHECK_IS(size, strlen(wanted));
    CHECK(memcmp(response, wanted, size) == 0);
    ipc_free(response);
}

/* Polls until a variable that callbacks change has a value. */
#define POLL_UNTIL(condition)                                                           \
    do {                                                                                \
        while (!(condition)) CHECK(ipc_poll(SOON_MS) > 0);                              \
    } while (0)

#endif
