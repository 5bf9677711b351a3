/* What a process counts of its own traffic: exact, for it and for its other end. */
#include "check.h"

#define CALLS 500
#define EVENTS 300

static void answer(const ipc_message_t *msg, void *user_data) {
    communication_stats_t stats = IPC_STATS_INIT;
    (void)user_data;
    if (msg->type != MSG_REQUEST) return;
    if (msg->payload_size == 5 && memcmp(msg->payload, "count", 5) == 0) {
        /* The request in hand was received, and its answer is not sent yet. */
        OK(ipc_get_stats(0, &stats));
        OK(ipc_reply(msg, &stats, sizeof stats));
    } else if (msg->payload_size == 4 && memcmp(msg->payload, "fail", 4) == 0) {
        OK(ipc_reply_error(msg, -1000));
    } else {
        OK(ipc_reply(msg, msg->payload, msg->payload_size));
    }
}

static void serve_counting(void) { serve("stats", answer); }

int main(void) {
    pid_t server = spawn(serve_counting);
    communication_stats_t stats = IPC_STATS_INIT, other, nothing;
    service_id_t dest;
    char payload[100], *big;
    void *response = NULL;
    size_t size = 0;
    int i;

    CHECK_IS(ipc_get_stats(0, &stats), IPC_ENOTINIT);
    OK(ipc_init(NULL));
    CHECK_IS(ipc_get_stats(0, NULL), IPC_EINVAL);
    memset(&nothing, 0, sizeof nothing);
    CHECK_IS(ipc_get_stats(0, &nothing), IPC_EINVAL);
    nothing.size = sizeof nothing - 1;
    CHECK_IS(ipc_get_stats(0, &nothing), IPC_EINVAL);

    OK(ipc_get_stats(0, &stats));
    CHECK_IS(stats.size, sizeof stats);
    CHECK_IS(stats.messages_sent, 0);
    CHECK_IS(stats.active_connections, 0);
    CHECK(stats.error_rate == 0.0);

    dest = find("stats");
    CHECK_IS(ipc_get_stats(dest, &stats), IPC_ENOENT);
    memset(payload, 7, sizeof payload);
    for (i = 0; i < CALLS; i++) {
        OK(ipc_call_into(dest, payload, (size_t)(i % 100), payload, sizeof payload, &size, SOON_MS));
        CHECK_IS(size, i % 100);
    }
    for (i = 0; i < EVENTS; i++) {
        OK(ipc_send_async_ex(dest, payload, 10, PRIORITY_NORMAL, SOON_MS, NULL, NULL, NULL));
    }
    /* Through bulk memory, and not. */
    big = (char *)calloc(1, 100000);
    CHECK(big != NULL);
    OK(ipc_call_into(dest, big, 100000, big, 100000, &size, SOON_MS));
    OK(ipc_call_into(dest, big, 12000, big, 100000, &size, SOON_MS));
    CHECK_IS(ipc_call(dest, "fail", 4, &response, &size, SOON_MS), -1000);

    OK(ipc_call_into(dest, "count", 5, &other, sizeof other, &size, SOON_MS));
    CHECK_IS(size, sizeof other);
    OK(ipc_get_stats(dest, &stats));
    CHECK_IS(stats.messages_sent, CALLS + EVENTS + 4);
    CHECK_IS(stats.messages_received, CALLS + 4);
    CHECK_IS(stats.bytes_sent, CALLS / 100 * 4950 + EVENTS * 10 + 112000 + 4 + 5);
    CHECK_IS(stats.errors, 1);
    CHECK_IS(stats.active_connections, 1);
    CHECK(stats.error_rate > 0.0 && stats.error_rate < 0.01);
    CHECK(stats.latency_ns_p50 <= stats.latency_ns_p95);
    CHECK(stats.latency_ns_p95 <= stats.latency_ns_p99);
    CHECK(stats.latency_ns_p99 > 0);

    CHECK_IS(other.messages_received, stats.messages_sent);
    CHECK_IS(other.bytes_received, stats.bytes_sent);
    CHECK_IS(other.messages_sent, stats.messages_received - 1);
    CHECK_IS(other.bytes_sent + sizeof other, stats.bytes_received);
    CHECK_IS(other.errors, 1);
    CHECK_IS(other.active_connections, 1);

    /* All together is the one channel. */
    OK(ipc_get_stats(0, &other));
    CHECK_IS(other.messages_sent, stats.messages_sent);
    CHECK_IS(ipc_get_stats(0x7fffffff, &other), IPC_ENOENT);

    free(big);
    OK(ipc_shutdown());
    dismiss(server);
    return 0;
}
