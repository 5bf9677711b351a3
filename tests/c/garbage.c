/* Every function with arguments that make no sense, in random order: an error each, never a crash,
 * and the library is none the worse for it. The order is the same in each run. */
#include "check.h"

static uint32_t seed = 12345;

static uint32_t some(uint32_t limit) {
    seed = seed * 1664525u + 1013904223u;
    return (seed >> 8) % limit;
}

static service_id_t some_id(void) {
    static const service_id_t ids[] = {0, 1, 2, 3, 77, 0x7fffffff, 0x80000000u, UINT32_MAX};
    return some(3) ? ids[some(8)] : seed;
}

static const char *some_name(void) {
    static const char *const names[] = {NULL, "", "\n", "\xff", "nobody", "\xed\xbf\xbf", "garbage"};
    return names[some(7)];
}

static void ignore_end(int status, const ipc_message_t *reply, void *user_data) {
    (void)user_data;
    CHECK((reply == NULL) == (status != IPC_OK));
}

static void do_something(void) {
    static ipc_message_t fake;
    static char buffer[64];
    service_id_t id = 0;
    void *response = NULL;
    size_t size = 0;
    uint64_t message_id = 0;
    const void *data = some(2) ? buffer : NULL;
    size_t length = some(3) ? some(sizeof buffer) : (some(2) ? SIZE_MAX : (size_t)1 << 40);
    const ipc_message_t *msg = some(2) ? &fake : (some(2) ? NULL : (const ipc_message_t *)(const void *)buffer);
    int status = IPC_OK;
    if (length > sizeof buffer && data != NULL) length = SIZE_MAX;
    switch (some(21)) {
    case 0: status = ipc_register_service(some_name(), some(2) ? &id : NULL); break;
    case 1: status = ipc_register_service_ex(some_name(), seed, some(2) ? &id : NULL); break;
    case 2: status = ipc_unregister_service(some_id()); break;
    case 3: status = ipc_discover_service(some_name(), some(2) ? &id : NULL); break;
    case 4: status = ipc_wait_service(some_name(), some(2), some(2) ? &id : NULL); break;
    case 5: status = ipc_call(some_id(), data, length, some(2) ? &response : NULL, some(2) ? &size : NULL, some(3)); break;
    case 6: status = ipc_call_into(some_id(), data, length, some(2) ? buffer : NULL, some(sizeof buffer), some(2) ? &size : NULL, some(3)); break;
    case 7: status = ipc_send_async(some_id(), data, length, some(2) ? ignore_end : NULL); break;
    case 8: status = ipc_send_async_ex(some_id(), data, length, (priority_level_t)some(9), some(3), some(2) ? ignore_end : NULL, NULL, some(2) ? &message_id : NULL); break;
    case 9: status = ipc_cancel(seed); break;
    case 10: status = ipc_receive_async(some_id(), some(2) ? echo : NULL); break;
    case 11: status = ipc_receive_async_ex(some_id(), some(2) ? echo : NULL, buffer); break;
    case 12: status = ipc_reply(msg, data, length); break;
    case 13: status = ipc_reply_error(msg, (int)seed); break;
    case 14: CHECK(ipc_message_retain(msg) == NULL); break;
    case 15: ipc_message_release(msg); break;
    case 16: status = ipc_poll(some(2)); break;
    case 17: ipc_free(NULL); break;
    case 18: CHECK(ipc_strerror((int)seed) != NULL && ipc_strerror(-(int)some(40)) != NULL); break;
    case 19: CHECK(ipc_errno((int)seed) >= 0); break;
    default: status = ipc_fd() >= 0 ? IPC_OK : ipc_fd(); break;
    }
    CHECK(status > IPC_EUSER && status != IPC_EPANIC);
    if (response != NULL) ipc_free(response);
}

static void serve_garbage(void) { serve("garbage-server", echo); }

int main(void) {
    pid_t server = spawn(serve_garbage);
    int i, round;
    for (i = 0; i < 300; i++) do_something();
    for (round = 0; round < 3; round++) {
        OK(ipc_init(NULL));
        for (i = 0; i < 500; i++) do_something();
        ask(find("garbage-server"), "sane", "sane");
        while (ipc_poll(0) > 0) {}
        OK(ipc_shutdown());
        for (i = 0; i < 100; i++) do_something();
    }
    dismiss(server);
    return 0;
}
