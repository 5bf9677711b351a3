/* Reliable queues: what is sent is received, acknowledged, given back, and refused. */
#include "check.h"
#include <pthread.h>

static void sends(queue_id_t queue, const char *text, uint64_t id) {
    uint64_t message = 77;
    OK(ipc_queue_send(queue, text, strlen(text), PRIORITY_NORMAL, SOON_MS, &message));
    CHECK_IS(message, id);
}

static ipc_delivery_t receives(queue_id_t queue, const char *text, uint32_t attempt) {
    ipc_delivery_t delivery;
    void *data = NULL;
    size_t size = 0;
    memset(&delivery, 0, sizeof delivery);
    OK(ipc_queue_receive(queue, &data, &size, &delivery, SOON_MS));
    CHECK_IS(size, strlen(text));
    CHECK(memcmp(data, text, size) == 0);
    CHECK_IS(delivery.attempt, attempt);
    ipc_free(data);
    return delivery;
}

static void nothing(queue_id_t queue) {
    ipc_delivery_t delivery;
    void *data = &delivery;
    size_t size = 5;
    CHECK_IS(ipc_queue_receive(queue, &data, &size, &delivery, 1), IPC_ETIMEDOUT);
    CHECK(data == &delivery && size == 5);
}

static int acknowledged[2];

/* Takes messages for as long as it takes, of a queue that is closed meanwhile. */
static void *takes(void *queue) {
    ipc_delivery_t delivery;
    void *data;
    size_t size;
    int status;
    while ((status = ipc_queue_receive(*(queue_id_t *)queue, &data, &size, &delivery,
                                       IPC_WAIT_FOREVER)) == IPC_OK) {
        ipc_free(data);
        OK(ipc_queue_ack(*(queue_id_t *)queue, &delivery));
        CHECK_IS(write(acknowledged[1], "", 1), 1);
    }
    /* It waited, or was about to. */
    CHECK(status == IPC_ECANCELED || status == IPC_ENOENT);
    return NULL;
}

static void on_message(queue_id_t queue, int status, const void *data, size_t size,
                       const ipc_delivery_t *delivery, void *user_data) {
    (void)queue, (void)status, (void)data, (void)size, (void)delivery, (void)user_data;
}

static void *handles(void *queue) {
    int round;
    for (round = 0; round < 40; round++) {
        OK(ipc_queue_handle(*(queue_id_t *)queue, on_message, NULL));
    }
    return NULL;
}

/* Handlers that are set by two threads at once are counted once. */
static void counts_handlers(const char *name) {
    enum { MOST = 64 };
    queue_id_t queues[MOST + 1];
    pthread_t threads[2];
    int i;
    for (i = 0; i <= MOST; i++) {
        OK(ipc_queue_open(name, 0, &queues[i]));
    }
    for (i = 0; i < 2; i++) {
        CHECK_IS(pthread_create(&threads[i], NULL, handles, &queues[0]), 0);
    }
    for (i = 0; i < 2; i++) {
        CHECK_IS(pthread_join(threads[i], NULL), 0);
    }
    for (i = 1; i < MOST; i++) {
        OK(ipc_queue_handle(queues[i], on_message, NULL));
    }
    CHECK_IS(ipc_queue_handle(queues[MOST], on_message, NULL), IPC_EQUOTA);
    OK(ipc_queue_handle(queues[0], NULL, NULL));
    OK(ipc_queue_handle(queues[MOST], on_message, NULL));
    for (i = 0; i <= MOST; i++) {
        OK(ipc_queue_close(queues[i]));
    }
}

int main(void) {
    pthread_t waiting;
    queue_id_t closed;
    queue_id_t queue = 9, other, dead;
    ipc_delivery_t a, b;
    service_id_t service;
    char name[32], large[2000];
    CHECK_IS(ipc_queue_open("q", 0, &queue), IPC_ENOTINIT);
    OK(ipc_init(NULL));
    service = find("ipc.queue");
    CHECK(service != 0);

    CHECK_IS(ipc_queue_open(NULL, 0, &queue), IPC_EINVAL);
    CHECK_IS(ipc_queue_open("q", 0, NULL), IPC_EINVAL);
    CHECK_IS(ipc_queue_open("q", 2, &queue), IPC_EINVAL);
    CHECK_IS(ipc_queue_open("", 0, &queue), IPC_EINVAL);
    CHECK_IS(ipc_queue_open("no/queue", 0, &queue), IPC_EINVAL);
    CHECK_IS(queue, 9);

    /* A queue of this process alone: the programs run one after another. */
    snprintf(name, sizeof name, "c-%ld", (long)getpid());
    OK(ipc_queue_open(name, 0, &queue));
    OK(ipc_queue_open(name, 0, &other));
    OK(ipc_queue_open(name, IPC_QUEUE_DEAD, &dead));
    CHECK(queue != other);

    CHECK_IS(ipc_queue_send(4000, "x", 1, PRIORITY_NORMAL, 0, NULL), IPC_ENOENT);
    CHECK_IS(ipc_queue_send(queue, NULL, 1, PRIORITY_NORMAL, 0, NULL), IPC_EINVAL);
    CHECK_IS(ipc_queue_send(queue, "x", 1, (priority_level_t)5, 0, NULL), IPC_EINVAL);
    CHECK_IS(ipc_queue_receive(queue, NULL, NULL, NULL, 0), IPC_EINVAL);
    CHECK_IS(ipc_queue_ack(queue, NULL), IPC_EINVAL);
    nothing(queue);

    /* In their order; each is one consumer's. */
    sends(queue, "a", 1);
    sends(queue, "b", 2);
    a = receives(queue, "a", 1);
    b = receives(other, "b", 1);
    CHECK_IS(ipc_queue_ack(other, &a), IPC_ESTALE);
    OK(ipc_queue_extend(queue, &a, SOON_MS));
    OK(ipc_queue_ack(queue, &a));
    CHECK_IS(ipc_queue_ack(queue, &a), IPC_ESTALE);

    /* Given back, it comes again; and at last as a dead letter. */
    OK(ipc_queue_nack(other, &b, 0));
    b = receives(queue, "b", 2);
    OK(ipc_queue_nack(queue, &b, 0));
    nothing(queue);
    b = receives(dead, "b", 3);
    OK(ipc_queue_ack(dead, &b));

    /* What a queue that is closed had is given to others. */
    sends(queue, "", 3);
    b = receives(other, "", 1);
    OK(ipc_queue_close(other));
    CHECK_IS(ipc_queue_close(other), IPC_ENOENT);
    CHECK_IS(ipc_queue_ack(other, &b), IPC_ENOENT);
    b = receives(queue, "", 2);
    OK(ipc_queue_ack(queue, &b));

    /* Also one at which somebody waits. */
    sends(queue, "held", 4);
    OK(ipc_queue_open(name, 0, &closed));
    b = receives(closed, "held", 1);
    CHECK_IS(pipe(acknowledged), 0);
    CHECK_IS(pthread_create(&waiting, NULL, takes, &closed), 0);
    /* When it has acknowledged this there is nothing more for it. */
    sends(closed, "taken", 5);
    CHECK_IS(read(acknowledged[0], large, 1), 1);
    OK(ipc_queue_close(closed));
    CHECK_IS(pthread_join(waiting, NULL), 0);
    a = receives(queue, "held", 2);
    OK(ipc_queue_ack(queue, &a));
    counts_handlers(name);

    /* What is more urgent goes first; what is too large or too much is refused. */
    sends(queue, "usual", 6);
    OK(ipc_queue_send(queue, "urgent", 6, PRIORITY_CRITICAL, 0, NULL));
    memset(large, 'x', sizeof large);
    CHECK_IS(ipc_queue_send(queue, large, sizeof large, PRIORITY_NORMAL, 0, NULL), IPC_EMSGSIZE);
    OK(ipc_queue_send(queue, large, 1000, PRIORITY_NORMAL, 0, NULL));
    CHECK_IS(ipc_queue_send(queue, "x", 1, PRIORITY_NORMAL, 0, NULL), IPC_EFULL);
    CHECK_IS(ipc_queue_send(queue, "x", 1, PRIORITY_NORMAL, 50, NULL), IPC_EFULL);
    a = receives(queue, "urgent", 1);
    OK(ipc_queue_ack(queue, &a));
    a = receives(queue, "usual", 1);
    OK(ipc_queue_ack(queue, &a));

    OK(ipc_queue_close(queue));
    OK(ipc_queue_close(dead));
    OK(ipc_shutdown());
    CHECK_IS(ipc_queue_close(queue), IPC_ENOTINIT);
    return 0;
}
