/* Traces: begun and ended, carried to the handler, and on to another thread. */
#include "check.h"

#define ROOT "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

/* Answers with the traceparent that the handler is within, and what routing says. */
static void answer(const ipc_message_t *msg, void *user_data) {
    char text[IPC_TRACEPARENT_SIZE] = "";
    (void)user_data;
    if (ipc_trace_current(text, sizeof text) == IPC_OK) {
        CHECK_IS(msg->routing.trace_id[0], 0x0A);
        CHECK_IS(msg->routing.trace_id[15], 0x9C);
        CHECK_IS(ipc_trace_end(), IPC_ENOENT);
    }
    OK(ipc_reply(msg, text, strlen(text)));
}

static void serve_traced(void) { serve("traced", answer); }

static service_id_t dest;

/* What a call carries to the handler: the trace of ROOT, or nothing. */
static void carries(int is_traced) {
    char seen[IPC_TRACEPARENT_SIZE] = "";
    size_t size = 0;
    OK(ipc_call_into(dest, "?", 1, seen, sizeof seen, &size, SOON_MS));
    CHECK_IS(size, is_traced ? strlen(ROOT) : 0);
    if (is_traced) {
        CHECK(memcmp(seen, ROOT, 36) == 0); /* the same trace */
        CHECK(memcmp(seen, ROOT, strlen(ROOT)) != 0); /* another span */
    }
}

static void *on_another_thread(void *traceparent) {
    carries(0);
    OK(ipc_trace_begin((const char *)traceparent));
    carries(1);
    OK(ipc_trace_end());
    return NULL;
}

int main(void) {
    pid_t server = spawn(serve_traced);
    char text[IPC_TRACEPARENT_SIZE], other[IPC_TRACEPARENT_SIZE];
    pthread_t thread;
    int i;

    CHECK_IS(ipc_trace_begin(NULL), IPC_ENOTINIT);
    OK(ipc_init(NULL));
    CHECK_IS(ipc_trace_end(), IPC_ENOENT);
    CHECK_IS(ipc_trace_current(text, sizeof text), IPC_ENOENT);
    CHECK_IS(ipc_trace_begin("nonsense"), IPC_EINVAL);
    CHECK_IS(ipc_trace_begin("00-00000000000000000000000000000000-b7ad6b7169203331-01"), IPC_EINVAL);
    CHECK_IS(ipc_trace_end(), IPC_ENOENT);

    dest = find("traced");
    carries(0);
    OK(ipc_trace_begin(ROOT));
    CHECK_IS(ipc_trace_current(NULL, 100), IPC_EINVAL);
    CHECK_IS(ipc_trace_current(text, sizeof text - 1), IPC_EMSGSIZE);
    OK(ipc_trace_current(text, sizeof text));
    CHECK(strcmp(text, ROOT) == 0);
    carries(1);

    /* A new one inside; then the outer one again. */
    OK(ipc_trace_begin(NULL));
    OK(ipc_trace_current(other, sizeof other));
    CHECK(memcmp(other, ROOT, 36) != 0);
    OK(ipc_trace_end());
    carries(1);

    CHECK_IS(pthread_create(&thread, NULL, on_another_thread, text), 0);
    CHECK_IS(pthread_join(thread, NULL), 0);
    OK(ipc_trace_end());
    carries(0);

    for (i = 0; i < 64; i++) OK(ipc_trace_begin(NULL));
    CHECK_IS(ipc_trace_begin(NULL), IPC_EQUOTA);
    for (i = 0; i < 64; i++) OK(ipc_trace_end());
    CHECK_IS(ipc_trace_end(), IPC_ENOENT);

    OK(ipc_shutdown());
    dismiss(server);
    return 0;
}
