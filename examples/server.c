/* A service that answers with what it is sent, and stops at Ctrl-C.
 *
 *   cc server.c -o server $(pkg-config --cflags --libs libipc)
 *   ipcd &
 *   ./server [NAME]        serves NAME ("echo" unless given)
 *
 * client.c, client.py, rust-client: any client calls any server. */
#include <ipc.h>

#include <signal.h>
#include <stdio.h>

/* Runs inside ipc_run, once for each message. The message is valid until this returns; to answer
 * later, from any thread, keep it by ipc_message_retain. */
static void on_message(const ipc_message_t *msg, void *user_data) {
    unsigned long *served = (unsigned long *)user_data;
    if (msg->type != MSG_REQUEST) {
        /* A one-way message: nobody waits for an answer. */
        printf("told \"%.*s\"\n", (int)msg->payload_size, (const char *)msg->payload);
        return;
    }
    if (msg->payload_size == 0) {
        /* An error of our own is -1000 or below, and reaches the caller unchanged. */
        ipc_reply_error(msg, IPC_EUSER - 1);
        return;
    }
    ipc_reply(msg, msg->payload, msg->payload_size);
    ++*served;
}

/* Of the whole library only this may be called by a signal handler. */
static void on_signal(int signal) {
    (void)signal;
    ipc_stop();
}

int main(int argc, char **argv) {
    const char *name = argc > 1 ? argv[1] : "echo";
    unsigned long served = 0;
    service_id_t id;
    int rc;

    /* The handler first, then the name: from then on messages may come. */
    if ((rc = ipc_init(NULL)) || (rc = ipc_receive_async_ex(0, on_message, &served)) ||
        (rc = ipc_register_service(name, &id))) {
        fprintf(stderr, "server: %s\n", ipc_strerror(rc));
        return 1;
    }
    signal(SIGINT, on_signal);
    signal(SIGTERM, on_signal);
    printf("serving \"%s\" as instance %u\n", name, (unsigned)id);
    fflush(stdout);

    rc = ipc_run(); /* until ipc_stop */
    printf("%lu calls served\n", served);
    ipc_shutdown();
    return rc == IPC_ECANCELED ? 0 : 1;
}
