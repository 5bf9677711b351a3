#include <ipc.h>
static void on_message(const ipc_message_t *m, void *u) { (void)u; ipc_reply(m, m->payload, m->payload_size); }
int main(void) {
    service_id_t id;
    if (ipc_init(NULL) || ipc_register_service("echo", &id) || ipc_receive_async(0, on_message)) return 1;
    return ipc_run();
}
