/* ipc_stop: from a signal handler, from another thread, before anything waits. */
#include "check.h"

#include <time.h>

static void never_answer(const ipc_message_t *msg, void *user_data) {
    (void)user_data;
    CHECK(ipc_message_retain(msg) == msg);
}

static void serve_silence(void) { serve("stop-silence", never_answer); }

/* Whether a call that comes too late to be stopped may find no runtime. */
static int returned, may_be_late;

static void check_stopped(int status) {
    CHECK(status == IPC_ECANCELED || (may_be_late && status == IPC_ENOTINIT));
    __atomic_add_fetch(&returned, 1, __ATOMIC_ACQ_REL);
}

static void *run(void *unused) {
    (void)unused;
    check_stopped(ipc_run());
    return NULL;
}

static void *call(void *service) {
    void *response = NULL;
    size_t size = 0;
    check_stopped(ipc_call(*(service_id_t *)service, "x", 1, &response, &size, IPC_WAIT_FOREVER));
    CHECK(response == NULL);
    return NULL;
}

static void *wait_for_nobody(void *unused) {
    service_id_t id = 0;
    (void)unused;
    check_stopped(ipc_wait_service("stop-nobody", IPC_WAIT_FOREVER, &id));
    return NULL;
}

static void ignore_signal(int signal) { (void)signal; }

static void nap(void) {
    struct timespec time;
    time.tv_sec = 0;
    time.tv_nsec = 1000000;
    nanosleep(&time, NULL);
}

/* Signals its parent when told to. */
static int go[2];
static void send_signals(void) {
    char byte;
    int i;
    CHECK_IS(read(go[0], &byte, 1), 1);
    for (i = 0; i < 10; i++) {
        CHECK_IS(kill(getppid(), SIGUSR1), 0);
        nap();
    }
}

/* Stops again and again until so many have returned: a thread that was about to wait when the
 * first one came is caught by the next. */
static void stop_all(int count) {
    while (__atomic_load_n(&returned, __ATOMIC_ACQUIRE) < count) {
        OK(ipc_stop());
        nap();
    }
}

int main(void) {
    pid_t silence, signaller;
    pthread_t threads[3];
    struct sigaction action;
    service_id_t service, id;
    int i;

    CHECK_IS(pipe(go), 0);
    silence = spawn(serve_silence);
    signaller = spawn(send_signals);
    OK(ipc_init(NULL));
    service = find("stop-silence");

    /* Nothing waits: the next loop ends at once, the one after that does not. */
    OK(ipc_stop());
    CHECK_IS(ipc_run(), IPC_ECANCELED);
    CHECK_IS(ipc_poll(1), 0);
    OK(ipc_stop());
    CHECK_IS(ipc_poll(SOON_MS), IPC_ECANCELED);
    CHECK_IS(ipc_poll(1), 0);

    /* By a signal, of this very thread, while it waits in ipc_run. */
    memset(&action, 0, sizeof action);
    action.sa_handler = stop_on_signal;
    CHECK_IS(sigaction(SIGALRM, &action, NULL), 0);
    for (i = 0; i < 3; i++) {
        timer_t timer;
        struct itimerspec soon;
        memset(&soon, 0, sizeof soon);
        soon.it_value.tv_nsec = 20000000;
        CHECK_IS(timer_create(CLOCK_MONOTONIC, NULL, &timer), 0);
        CHECK_IS(timer_settime(timer, 0, &soon, NULL), 0);
        CHECK_IS(ipc_run(), IPC_ECANCELED);
        CHECK_IS(timer_delete(timer), 0);
    }

    /* Other signals go unnoticed: waits are taken up again. */
    action.sa_handler = ignore_signal;
    CHECK_IS(sigaction(SIGUSR1, &action, NULL), 0);
    CHECK_IS(write(go[1], "g", 1), 1);
    CHECK_IS(ipc_poll(100), 0);
    CHECK_IS(ipc_wait_service("stop-nobody", 100, &id), IPC_ETIMEDOUT);
    join(signaller);

    /* Calls and searches that other threads are blocked in. */
    CHECK_IS(pthread_create(&threads[0], NULL, call, &service), 0);
    CHECK_IS(pthread_create(&threads[1], NULL, wait_for_nobody, NULL), 0);
    CHECK_IS(pthread_create(&threads[2], NULL, run, NULL), 0);
    stop_all(3);
    for (i = 0; i < 3; i++) CHECK_IS(pthread_join(threads[i], NULL), 0);
    while (ipc_poll(0) == IPC_ECANCELED) {}

    /* Every loop ends, not just one of them. */
    returned = 0;
    for (i = 0; i < 3; i++) CHECK_IS(pthread_create(&threads[i], NULL, run, NULL), 0);
    stop_all(3);
    for (i = 0; i < 3; i++) CHECK_IS(pthread_join(threads[i], NULL), 0);
    while (ipc_poll(0) == IPC_ECANCELED) {}

    /* The last ipc_shutdown ends them as well. */
    may_be_late = 1;
    CHECK_IS(pthread_create(&threads[0], NULL, call, &service), 0);
    CHECK_IS(pthread_create(&threads[1], NULL, run, NULL), 0);
    CHECK_IS(ipc_poll(50), 0);
    OK(ipc_shutdown());
    for (i = 0; i < 2; i++) CHECK_IS(pthread_join(threads[i], NULL), 0);
    CHECK_IS(ipc_stop(), IPC_ENOTINIT);

    dismiss(silence);
    return 0;
}
