/* Messages in bulk memory: lent, filled, sent, read in parts, answered in kind. */
#include "check.h"

enum { SIZE = 3 << 20 };

static unsigned char byte_at(size_t at) { return (unsigned char)(at * 7 + at / 256); }

static void fill(void *data, size_t size) {
    unsigned char *bytes = (unsigned char *)data;
    size_t at;
    for (at = 0; at < size; at++) bytes[at] = byte_at(at);
}

static int is_filled(const void *data, size_t size) {
    const unsigned char *bytes = (const unsigned char *)data;
    size_t at;
    for (at = 0; at < size; at++) {
        if (bytes[at] != byte_at(at)) return 0;
    }
    return 1;
}

/* Answers with a loan, filled anew; or, to a short request, with a part of the last long one. */
static void answer(const ipc_message_t *msg, void *user_data) {
    static const ipc_message_t *kept;
    unsigned char part[8] = {0};
    size_t copied = 0;
    void *data = NULL;
    (void)user_data;
    if (msg->payload_size > sizeof part) {
        CHECK(msg->payload == NULL);
        OK(ipc_message_read(msg, msg->payload_size - 4, part, sizeof part, &copied));
        CHECK_IS(copied, 4);
        CHECK_IS(part[0], byte_at(msg->payload_size - 4));
        CHECK_IS(ipc_message_read(msg, 0, NULL, 1, &copied), IPC_EINVAL);
        if (kept) ipc_message_release(kept);
        kept = ipc_message_retain(msg);
        CHECK(kept == msg && msg->payload == NULL);
        if (msg->type != MSG_REQUEST) return;
        CHECK_IS(ipc_reply_loan(msg, 0, &data), IPC_EINVAL);
        OK(ipc_reply_loan(msg, msg->payload_size, &data));
        fill(data, msg->payload_size);
        OK(ipc_reply_loaned(msg, data));
        CHECK_IS(ipc_reply_loaned(msg, data), IPC_EINVAL);
        return;
    }
    CHECK(msg->payload != NULL);
    OK(ipc_message_read(msg, 0, part, sizeof part, &copied));
    CHECK_IS(copied, msg->payload_size);
    CHECK(kept != NULL);
    OK(ipc_message_read(kept, 100, part, sizeof part, &copied));
    CHECK_IS(copied, sizeof part);
    OK(ipc_reply(msg, part, copied));
}

static void serve_views(void) {
    ipc_config_t config = IPC_CONFIG_INIT;
    service_id_t id;
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = stop_on_signal;
    CHECK_IS(sigaction(SIGTERM, &action, NULL), 0);
    config.flags = IPC_BULK_VIEWS;
    OK(ipc_init(&config));
    OK(ipc_receive_async(0, answer));
    OK(ipc_register_service("bulk-views", &id));
    CHECK_IS(ipc_run(), IPC_ECANCELED);
    OK(ipc_shutdown());
}

static void serve_copies(void) { serve("bulk-copies", echo); }

static void call_loaned(service_id_t dest, size_t size) {
    void *data = NULL, *response = NULL;
    size_t length = 0;
    OK(ipc_loan(dest, size, &data));
    CHECK(data != NULL);
    fill(data, size);
    OK(ipc_call_loaned(dest, data, &response, &length, SOON_MS));
    CHECK_IS(length, size);
    CHECK(is_filled(response, length));
    ipc_free(response);
}

int main(void) {
    pid_t views, copies;
    service_id_t dest, other;
    void *data = NULL, *loans[40], *response;
    unsigned char part[8];
    size_t length, count;
    int round;

    views = spawn(serve_views);
    copies = spawn(serve_copies);
    CHECK_IS(ipc_loan(1, 1, &data), IPC_ENOTINIT);
    OK(ipc_init(NULL));
    dest = find("bulk-views");
    other = find("bulk-copies");

    for (round = 0; round < 5; round++) {
        call_loaned(dest, SIZE);
        call_loaned(dest, 100);
        call_loaned(other, SIZE);
    }

    /* Nobody answers a one-way message; what it said is asked for. */
    OK(ipc_loan(dest, 1000, &data));
    fill(data, 1000);
    OK(ipc_send_loaned(dest, data, SOON_MS));
    OK(ipc_call(dest, "part", 4, &response, &length, SOON_MS));
    CHECK_IS(length, sizeof part);
    memcpy(part, response, sizeof part);
    ipc_free(response);
    for (round = 0; round < 8; round++) CHECK_IS(part[round], byte_at(100 + (size_t)round));

    /* What was sent, or is none, is no loan. */
    CHECK_IS(ipc_send_loaned(dest, data, 0), IPC_EINVAL);
    CHECK_IS(ipc_return_loan(data), IPC_EINVAL);
    CHECK_IS(ipc_call_loaned(dest, part, &response, &length, 1000), IPC_EINVAL);
    OK(ipc_return_loan(NULL));
    CHECK_IS(ipc_loan(dest, 0, &data), IPC_EINVAL);
    CHECK_IS(ipc_loan(dest, 1, NULL), IPC_EINVAL);
    CHECK_IS(ipc_loan(dest, (size_t)65 << 20, &data), IPC_EMSGSIZE);
    CHECK_IS(ipc_loan(12345678, 1, &data), IPC_ENOENT);

    /* As many as there are, and then they come back. */
    for (count = 0; count < 40; count++) {
        int status = ipc_loan(other, 1000, &loans[count]);
        if (status == IPC_EFULL) break;
        OK(status);
    }
    CHECK_IS(count, 32);
    while (count > 0) OK(ipc_return_loan(loans[--count]));
    OK(ipc_loan(other, 1000, &data));
    /* A loan for one service is none for another; either way it is gone. */
    CHECK_IS(ipc_call_loaned(dest, data, &response, &length, 1000), IPC_EPEERDIED);
    CHECK_IS(ipc_return_loan(data), IPC_EINVAL);

    /* Left over at the end: given back by it. */
    OK(ipc_loan(other, 1000, &data));
    OK(ipc_shutdown());
    dismiss(views);
    dismiss(copies);
    return 0;
}
