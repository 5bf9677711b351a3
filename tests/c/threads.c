/* Many threads: calling, polling, freeing what others received. */
#include "check.h"

#define THREADS 8
#define CALLS 40

static service_id_t service;

/* --- a service with several polling threads: one source's messages come in order --- */

static void check_order(const ipc_message_t *msg, void *user_data) {
    uint32_t numbers[2];
    static uint32_t next[THREADS];
    (void)user_data;
    if (msg->payload_size == sizeof numbers && msg->type == MSG_EVENT) {
        memcpy(numbers, msg->payload, sizeof numbers);
        CHECK(numbers[0] < THREADS);
        CHECK_IS(numbers[1], next[numbers[0]]);
        next[numbers[0]]++;
    } else {
        OK(ipc_reply(msg, msg->payload, msg->payload_size));
    }
}

static void *run(void *unused) {
    (void)unused;
    CHECK_IS(ipc_run(), IPC_ECANCELED);
    return NULL;
}

static void serve_by_threads(void) {
    pthread_t threads[3];
    service_id_t id;
    sigset_t term;
    int i, signal;
    sigemptyset(&term);
    sigaddset(&term, SIGTERM);
    CHECK_IS(pthread_sigmask(SIG_BLOCK, &term, NULL), 0);
    OK(ipc_init(NULL));
    OK(ipc_receive_async(0, check_order));
    OK(ipc_register_service("threads", &id));
    for (i = 0; i < 3; i++) CHECK_IS(pthread_create(&threads[i], NULL, run, NULL), 0);
    CHECK_IS(sigwait(&term, &signal), 0);
    OK(ipc_stop());
    for (i = 0; i < 3; i++) CHECK_IS(pthread_join(threads[i], NULL), 0);
    OK(ipc_shutdown());
}

/* --- callers --- */

static void *received[THREADS];

static void *call(void *argument) {
    uint32_t thread = *(uint32_t *)argument, number;
    unsigned char request[300], into[300];
    size_t size = 0;
    int i;
    memset(request, (int)thread, sizeof request);
    for (i = 0; i < CALLS; i++) {
        size_t length = (size_t)(i * 37) % sizeof request;
        void *response = NULL;
        if (length >= 4) memcpy(request, &i, 4);
        if (length == 8) length = 9;
        OK(ipc_call(service, request, length, &response, &size, SOON_MS));
        CHECK(size == length && memcmp(response, request, length) == 0);
        ipc_free(response);
        OK(ipc_call_into(service, request, length, into, sizeof into, &size, SOON_MS));
        CHECK(size == length && memcmp(into, request, length) == 0);
    }
    for (number = 0; number < CALLS; number++) {
        uint32_t numbers[2];
        numbers[0] = thread;
        numbers[1] = number;
        OK(ipc_send_async_ex(service, numbers, sizeof numbers, PRIORITY_NORMAL, SOON_MS, NULL, NULL, NULL));
    }
    OK(ipc_call(service, &thread, 4, &received[thread], &size, SOON_MS));
    return NULL;
}

/* --- callbacks in one thread, sent by others --- */

static int ended;
static void on_end(int status, const ipc_message_t *reply, void *user_data) {
    uint32_t thread = *(uint32_t *)user_data;
    OK(status);
    CHECK(reply->payload_size == 4 && memcmp(reply->payload, &thread, 4) == 0);
    ended++;
}

static void *send_calls(void *argument) {
    int i;
    for (i = 0; i < 10; i++)
        OK(ipc_send_async_ex(service, argument, 4, PRIORITY_NORMAL, SOON_MS, on_end, argument, NULL));
    return NULL;
}

/* --- the runtime comes and goes under the feet of the others --- */

static void *init_call_shutdown(void *unused) {
    int i;
    (void)unused;
    for (i = 0; i < 5; i++) {
        OK(ipc_init(NULL));
        ask(service, "here", "here");
        OK(ipc_shutdown());
    }
    return NULL;
}

int main(void) {
    pid_t server = spawn(serve_by_threads);
    pthread_t threads[THREADS];
    uint32_t numbers[THREADS], i;
    int round;
    for (i = 0; i < THREADS; i++) numbers[i] = i;
    for (round = 0; round < 2; round++) {
        OK(ipc_init(NULL));
        service = find("threads");
        if (round == 0) {
            for (i = 0; i < THREADS; i++) CHECK_IS(pthread_create(&threads[i], NULL, call, &numbers[i]), 0);
            for (i = 0; i < THREADS; i++) CHECK_IS(pthread_join(threads[i], NULL), 0);
            /* Freed by another thread than the one that called. */
            for (i = 0; i < THREADS; i++) {
                CHECK(memcmp(received[i], &i, 4) == 0);
                ipc_free(received[i]);
            }
        }
        ended = 0;
        for (i = 0; i < THREADS; i++) CHECK_IS(pthread_create(&threads[i], NULL, send_calls, &numbers[i]), 0);
        POLL_UNTIL(ended == 10 * THREADS);
        for (i = 0; i < THREADS; i++) CHECK_IS(pthread_join(threads[i], NULL), 0);
        CHECK_IS(ipc_poll(0), 0);
        OK(ipc_shutdown());
    }
    for (i = 0; i < THREADS; i++) CHECK_IS(pthread_create(&threads[i], NULL, init_call_shutdown, NULL), 0);
    for (i = 0; i < THREADS; i++) CHECK_IS(pthread_join(threads[i], NULL), 0);
    CHECK_IS(ipc_shutdown(), IPC_ENOTINIT);
    dismiss(server);
    return 0;
}
