/* ipc_send_async: callbacks, message fields, priorities, deadlines, cancelling, one-way messages. */
#include "check.h"

#include <time.h>

/* The service: echoes; holds back what begins with 'h' until "go"; answers 'e' with an error; counts
 * one-way messages and tells the count when asked. */
static const ipc_message_t *withheld[512];
static int withheld_count, one_way_count;

static void on_message(const ipc_message_t *msg, void *user_data) {
    int i;
    CHECK(user_data == NULL);
    CHECK(msg->payload != NULL);
    if (msg->type == MSG_EVENT) {
        one_way_count++;
        CHECK_IS(ipc_reply(msg, "x", 1), IPC_EINVAL);
        CHECK_IS(ipc_reply_error(msg, IPC_EUSER), IPC_EINVAL);
        return;
    }
    CHECK_IS(msg->type, MSG_REQUEST);
    switch (msg->payload_size ? msg->payload[0] : 0) {
    case 'h':
        withheld[withheld_count++] = ipc_message_retain(msg);
        break;
    case 'g':
        for (i = 0; i < withheld_count; i++) {
            ipc_reply(withheld[i], withheld[i]->payload, withheld[i]->payload_size);
            ipc_message_release(withheld[i]);
        }
        withheld_count = 0;
        OK(ipc_reply(msg, NULL, 0));
        break;
    case 'e':
        OK(ipc_reply_error(msg, -4711));
        break;
    case '?':
        OK(ipc_reply(msg, &one_way_count, sizeof one_way_count));
        break;
    default:
        OK(ipc_reply(msg, msg->payload, msg->payload_size));
    }
}

static void serve_async(void) { serve("async", on_message); }

/* What callbacks saw. */
static int ended, last_status;
static char order[512];
static uint64_t last_id;
static service_id_t service;

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void on_end(int status, const ipc_message_t *reply, void *user_data) {
    const char *tag = (const char *)user_data;
    last_status = status;
    order[ended++] = *tag;
    CHECK((reply == NULL) == (status != IPC_OK));
    if (reply != NULL) {
        CHECK_IS(reply->type, MSG_RESPONSE);
        CHECK_IS(reply->source_service_id, service);
        CHECK(reply->dest_service_id != 0);
        CHECK(reply->security.service_uid == (uint32_t)getuid());
        CHECK(reply->payload != NULL);
        CHECK(reply->timestamp != 0 && reply->timestamp <= now_ns());
        CHECK(reply->payload_size > 0 && reply->payload[reply->payload_size - 1] == (uint8_t)*tag);
        CHECK_IS(ipc_reply(reply, "x", 1), IPC_EINVAL);
        last_id = reply->message_id;
    }
}

static void on_end_of_config(int status, const ipc_message_t *reply, void *user_data) {
    OK(status);
    CHECK(reply != NULL && user_data == (void *)order);
    ended++;
}

static const ipc_message_t *kept;
static void keep_reply(int status, const ipc_message_t *reply, void *user_data) {
    OK(status);
    (void)user_data;
    kept = ipc_message_retain(reply);
    CHECK(kept == reply);
    ended++;
}

static uint64_t send(const char *text, priority_level_t priority, uint32_t timeout_ms) {
    uint64_t id = 0;
    size_t size = strlen(text);
    OK(ipc_send_async_ex(service, text, size, priority, timeout_ms, on_end,
                         (void *)(text + size - 1), &id));
    CHECK(id != 0);
    return id;
}

static void calls_and_fields(void) {
    uint64_t id;
    int level;
    ended = 0;
    for (level = PRIORITY_CRITICAL; level <= PRIORITY_BACKGROUND; level++) {
        id = send("a", (priority_level_t)level, SOON_MS);
        POLL_UNTIL(ended == level + 1);
        OK(last_status);
        CHECK(last_id == id);
    }
    ended = 0;
    OK(ipc_send_async(service, "b", 1, on_end_of_config));
    POLL_UNTIL(ended == 1);

    ended = 0;
    send("e!", PRIORITY_NORMAL, IPC_WAIT_FOREVER);
    POLL_UNTIL(ended == 1);
    CHECK_IS(last_status, -4711);

    /* Answers of one priority come in the order of their requests. */
    ended = 0;
    send("1", PRIORITY_NORMAL, 0);
    send("2", PRIORITY_NORMAL, 0);
    send("3", PRIORITY_NORMAL, 0);
    POLL_UNTIL(ended == 3);
    CHECK(memcmp(order, "123", 3) == 0);
}

static void deadlines_and_cancelling(void) {
    uint64_t first, second, began = now_ns();
    ended = 0;
    send("h1", PRIORITY_NORMAL, 20);
    POLL_UNTIL(ended == 1);
    CHECK_IS(last_status, IPC_ETIMEDOUT);
    CHECK(now_ns() - began >= 19000000u);

    first = send("h2", PRIORITY_NORMAL, IPC_WAIT_FOREVER);
    second = send("h3", PRIORITY_HIGH, SOON_MS);
    CHECK(first != second);
    OK(ipc_cancel(first));
    CHECK_IS(ipc_cancel(first), IPC_ENOENT);
    /* Nothing runs but in ipc_poll. */
    CHECK_IS(ended, 1);
    POLL_UNTIL(ended == 2);
    CHECK_IS(last_status, IPC_ECANCELED);
    CHECK(order[1] == '2');
    ask(service, "go", "");
    POLL_UNTIL(ended == 3);
    OK(last_status);
    CHECK(order[2] == '3');
    CHECK_IS(ipc_cancel(second), IPC_ENOENT);
    /* Each ran once. */
    while (ipc_poll(50) > 0) {}
    CHECK_IS(ended, 3);
}

/* As many calls may be outstanding as the table holds: the next one is refused, and none is lost. */
static void too_many_calls(void) {
    int sent = 0, status;
    uint64_t id = 0, last = 0;
    ended = 0;
    for (;;) {
        status = ipc_send_async_ex(service, "h", 1, PRIORITY_NORMAL, SOON_MS, on_end, (void *)"h", &id);
        if (status != IPC_OK) break;
        last = id;
        CHECK(++sent < 500);
    }
    CHECK_IS(status, IPC_EFULL);
    CHECK(id == last && sent >= 64);
    OK(ipc_cancel(last));
    POLL_UNTIL(ended == 1);
    CHECK_IS(last_status, IPC_ECANCELED);
    ask(service, "go", "");
    POLL_UNTIL(ended == sent);
    OK(last_status);
}

static void retained_replies(void) {
    unsigned char big[5000];
    memset(big, 'b', sizeof big);
    ended = 0;
    OK(ipc_send_async(service, big, sizeof big, keep_reply));
    POLL_UNTIL(ended == 1);
    CHECK_IS(kept->payload_size, sizeof big);
    CHECK(memcmp(kept->payload, big, sizeof big) == 0);
    CHECK_IS(ipc_reply(kept, "x", 1), IPC_EINVAL);
    ipc_message_release(kept);
}

static void one_way(void) {
    uint64_t id = 0;
    void *response;
    size_t size;
    int i, count = 0;
    for (i = 0; i < 20; i++) OK(ipc_send_async(service, "o", 1, NULL));
    for (i = 0; i < 20; i++)
        OK(ipc_send_async_ex(service, NULL, 0, PRIORITY_NORMAL, SOON_MS, NULL, NULL, &id));
    CHECK(id != 0);
    CHECK_IS(ipc_cancel(id), IPC_ENOENT);
    /* Same priority, same channel: it comes after all of them. */
    OK(ipc_call(service, "?", 1, &response, &size, SOON_MS));
    CHECK_IS(size, sizeof count);
    memcpy(&count, response, sizeof count);
    ipc_free(response);
    CHECK_IS(count, 40);
}

/* A service that does not poll: the ring fills, and says so. */
static int started[2], finish[2];
static void serve_deaf(void) {
    service_id_t id;
    char byte;
    OK(ipc_init(NULL));
    OK(ipc_receive_async(0, echo));
    OK(ipc_register_service("async-deaf", &id));
    CHECK_IS(write(started[1], "s", 1), 1);
    /* One poll accepts the channel; then nothing is taken until told. */
    while (ipc_poll(SOON_MS) == 0) {}
    CHECK_IS(write(started[1], "d", 1), 1);
    CHECK_IS(read(finish[0], &byte, 1), 1);
    while (ipc_poll(200) > 0) {}
    OK(ipc_shutdown());
}

static void full_rings(void) {
    int status, sent = 0;
    char byte;
    CHECK_IS(read(started[0], &byte, 1), 1);
    service = find("async-deaf");
    ask(service, "hello", "hello");
    CHECK_IS(read(started[0], &byte, 1), 1);
    while ((status = ipc_send_async(service, "fill", 4, NULL)) == IPC_OK) CHECK(++sent < 100000);
    CHECK_IS(status, IPC_EFULL);
    CHECK(sent >= 16);
    CHECK_IS(ipc_send_async_ex(service, "x", 1, PRIORITY_NORMAL, 20, NULL, NULL, NULL), IPC_EFULL);
    /* The urgent ring is another one. */
    OK(ipc_send_async_ex(service, "x", 1, PRIORITY_HIGH, 0, NULL, NULL, NULL));
    CHECK_IS(write(finish[1], "f", 1), 1);
    OK(ipc_send_async_ex(service, "x", 1, PRIORITY_NORMAL, SOON_MS, NULL, NULL, NULL));
}

int main(void) {
    pid_t server, deaf;
    ipc_config_t config = IPC_CONFIG_INIT;
    CHECK_IS(pipe(started), 0);
    CHECK_IS(pipe(finish), 0);
    server = spawn(serve_async);
    deaf = spawn(serve_deaf);
    config.user_data = order;
    OK(ipc_init(&config));
    service = find("async");
    calls_and_fields();
    deadlines_and_cancelling();
    too_many_calls();
    retained_replies();
    one_way();
    dismiss(server);
    full_rings();
    join(deaf);
    OK(ipc_shutdown());
    return 0;
}
