/* What a callback may do, and what it may not. */
#include "check.h"

/* A service that calls the one that called it, while that waits: a cycle ends by its deadline. */
static service_id_t first_service, second_service;

static void forbidden_inside(void) {
    CHECK_IS(ipc_poll(0), IPC_EREENTRANT);
    CHECK_IS(ipc_poll(IPC_WAIT_FOREVER), IPC_EREENTRANT);
    CHECK_IS(ipc_run(), IPC_EREENTRANT);
    CHECK_IS(ipc_shutdown(), IPC_EREENTRANT);
}

static void second_handler(const ipc_message_t *msg, void *user_data) {
    void *response = NULL;
    size_t size = 0;
    int status;
    (void)user_data;
    if (msg->payload_size == 5 && memcmp(msg->payload, "cycle", 5) == 0) {
        if (first_service == 0) first_service = find("reentrancy-first");
        status = ipc_call(first_service, "back", 4, &response, &size, 100);
        OK(ipc_reply(msg, &status, sizeof status));
    } else {
        OK(ipc_reply(msg, "second", 6));
    }
}

static void serve_second(void) { serve("reentrancy-second", second_handler); }

static int ends;
static void on_end(int status, const ipc_message_t *reply, void *user_data) {
    (void)reply; (void)user_data;
    OK(status);
    forbidden_inside();
    ends++;
}

static void on_error_end(int status, const ipc_message_t *reply, void *user_data) {
    (void)user_data;
    CHECK(reply == NULL);
    CHECK_IS(status, IPC_ECANCELED);
    forbidden_inside();
    /* A callback may send, call, register and change handlers. */
    OK(ipc_send_async(second_service, "x", 1, on_end));
    ends++;
}

static void first_handler(const ipc_message_t *msg, void *user_data) {
    int status = 0;
    size_t size = 0;
    service_id_t id = 0;
    uint64_t message_id = 0;
    (void)user_data;
    forbidden_inside();
    if (msg->payload_size == 4) {
        OK(ipc_reply(msg, "back", 4));
        return;
    }
    ask(second_service, "hello", "second");
    forbidden_inside();
    /* We wait for the second service while it waits for us. */
    OK(ipc_call_into(second_service, "cycle", 5, &status, sizeof status, &size, SOON_MS));
    CHECK_IS(status, IPC_ETIMEDOUT);
    OK(ipc_register_service("reentrancy-inside", &id));
    OK(ipc_unregister_service(id));
    OK(ipc_receive_async(77, first_handler));
    OK(ipc_receive_async(77, NULL));
    OK(ipc_init(NULL));
    CHECK_IS(ipc_shutdown(), IPC_EREENTRANT);
    OK(ipc_send_async(second_service, "x", 1, on_end));
    OK(ipc_send_async_ex(second_service, "y", 1, PRIORITY_NORMAL, SOON_MS, on_error_end, NULL, &message_id));
    OK(ipc_cancel(message_id));
    CHECK_IS(ends, 0);
    OK(ipc_reply(msg, "done", 4));
}

static void call_first(void) {
    OK(ipc_init(NULL));
    ask(find("reentrancy-first"), "begin", "done");
    OK(ipc_shutdown());
}

int main(void) {
    pid_t second = spawn(serve_second), client = spawn(call_first);
    service_id_t id;
    OK(ipc_init(NULL));
    second_service = find("reentrancy-second");
    OK(ipc_receive_async(0, first_handler));
    OK(ipc_register_service("reentrancy-first", &id));
    POLL_UNTIL(ends == 3);
    join(client);
    dismiss(second);
    /* The handler's ipc_init counts. */
    OK(ipc_shutdown());
    OK(ipc_shutdown());
    CHECK_IS(ipc_shutdown(), IPC_ENOTINIT);
    return 0;
}
