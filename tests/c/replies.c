/* Replies: exactly one for each request, from whichever thread, and none for a copy. */
#include "check.h"

static int jobs[2];

/* A second thread of the service, which answers what was retained. */
static void *work(void *unused) {
    const ipc_message_t *msg;
    (void)unused;
    while (read(jobs[0], &msg, sizeof msg) == (ssize_t)sizeof msg && msg != NULL) {
        CHECK(ipc_message_retain(msg) == msg);
        OK(ipc_reply(msg, msg->payload, msg->payload_size));
        CHECK_IS(ipc_reply(msg, "again", 5), IPC_EALREADY);
        ipc_message_release(msg);
        ipc_message_release(msg);
    }
    return NULL;
}

static void on_message(const ipc_message_t *msg, void *user_data) {
    ipc_message_t copy = *msg;
    char text[32];
    (void)user_data;
    memset(text, 0, sizeof text);
    memcpy(text, msg->payload, msg->payload_size < 31 ? msg->payload_size : 31);
    CHECK_IS(msg->type, MSG_REQUEST);
    CHECK(msg->security.service_uid == (uint32_t)getuid());
    CHECK(msg->source_service_id != 0 && msg->dest_service_id != 0);
    CHECK(msg->message_id != 0 && msg->timestamp != 0);
    CHECK(msg->routing.transport == 0);

    if (strcmp(text, "nothing") == 0) return;
    if (strcmp(text, "twice") == 0) {
        OK(ipc_reply(msg, "first", 5));
        CHECK_IS(ipc_reply(msg, "second", 6), IPC_EALREADY);
        CHECK_IS(ipc_reply_error(msg, IPC_EUSER), IPC_EALREADY);
    } else if (strcmp(text, "copy") == 0) {
        CHECK_IS(ipc_reply(&copy, "copy", 4), IPC_EINVAL);
        CHECK_IS(ipc_reply_error(&copy, IPC_EUSER), IPC_EINVAL);
        CHECK(ipc_message_retain(&copy) == NULL);
        ipc_message_release(&copy);
        CHECK_IS(ipc_reply((const ipc_message_t *)(const void *)text, "text", 4), IPC_EINVAL);
        CHECK_IS(ipc_reply(msg + 1, "next", 4), IPC_EINVAL);
        OK(ipc_reply(msg, "right", 5));
    } else if (strncmp(text, "error ", 6) == 0) {
        int status = atoi(text + 6);
        CHECK_IS(ipc_reply_error(msg, 0), IPC_EINVAL);
        CHECK_IS(ipc_reply_error(msg, -999), IPC_EINVAL);
        OK(ipc_reply_error(msg, status));
    } else if (strcmp(text, "retained, then not") == 0) {
        CHECK(ipc_message_retain(msg) == msg);
        CHECK(ipc_message_retain(msg) == msg);
        ipc_message_release(msg);
        ipc_message_release(msg);
        /* Readable until the handler returns. */
        CHECK(memcmp(msg->payload, "retained", 8) == 0);
    } else if (strncmp(text, "later", 5) == 0) {
        const ipc_message_t *kept = ipc_message_retain(msg);
        CHECK(kept == msg);
        CHECK_IS(write(jobs[1], &kept, sizeof kept), sizeof kept);
    } else if (strcmp(text, "too long") == 0) {
        size_t size = (64u << 20) + 1;
        void *big = malloc(size);
        CHECK_IS(ipc_reply(msg, big, size), IPC_EMSGSIZE);
        CHECK_IS(ipc_reply(msg, NULL, 1), IPC_EINVAL);
        free(big);
        OK(ipc_reply(msg, "short", 5));
    } else {
        CHECK(strcmp(text, "kept for ever") == 0);
        CHECK(ipc_message_retain(msg) == msg);
    }
}

static void serve_replies(void) {
    const ipc_message_t *none = NULL;
    pthread_t worker;
    CHECK_IS(pipe(jobs), 0);
    CHECK_IS(pthread_create(&worker, NULL, work, NULL), 0);
    serve("replies", on_message);
    CHECK_IS(write(jobs[1], &none, sizeof none), sizeof none);
    CHECK_IS(pthread_join(worker, NULL), 0);
}

static service_id_t service;

static int ask_for_status(const char *text) {
    void *response = NULL;
    size_t size = 4711;
    int status = ipc_call(service, text, strlen(text), &response, &size, SOON_MS);
    CHECK(status == IPC_OK || (response == NULL && size == 4711));
    if (status == IPC_OK) ipc_free(response);
    return status;
}

static int kept_status = 1;
static void on_kept_end(int status, const ipc_message_t *reply, void *user_data) {
    CHECK(reply == NULL && user_data == NULL);
    kept_status = status;
}

int main(void) {
    pid_t server = spawn(serve_replies);
    char long_text[9000];
    void *response;
    size_t size;
    int round;

    OK(ipc_init(NULL));
    service = find("replies");
    for (round = 0; round < 3; round++) {
        CHECK_IS(ask_for_status("nothing"), IPC_ENOREPLY);
        ask(service, "twice", "first");
        ask(service, "copy", "right");
        CHECK_IS(ask_for_status("error -1000"), -1000);
        CHECK_IS(ask_for_status("error -2147483648"), INT32_MIN);
        CHECK_IS(ask_for_status("error -1234567"), -1234567);
        CHECK_IS(ask_for_status("error -6"), IPC_EACCES);
        CHECK_IS(ask_for_status("retained, then not"), IPC_ENOREPLY);
        ask(service, "later", "later");
        ask(service, "too long", "short");
        memset(long_text, 'l', sizeof long_text);
        memcpy(long_text, "later", 5);
        OK(ipc_call(service, long_text, sizeof long_text, &response, &size, SOON_MS));
        CHECK(size == sizeof long_text && memcmp(response, long_text, size) == 0);
        ipc_free(response);
    }
    /* A message that is retained for ever is answered by the shutdown of the service. */
    OK(ipc_send_async(service, "kept for ever", 13, on_kept_end));
    ask(service, "twice", "first");
    dismiss(server);
    POLL_UNTIL(kept_status != 1);
    CHECK(kept_status == IPC_ENOREPLY || kept_status == IPC_EMAYBE);
    OK(ipc_shutdown());
    return 0;
}
