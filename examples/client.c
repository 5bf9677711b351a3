/* Calls a service in every way there is.
 *
 *   cc client.c -o client $(pkg-config --cflags --libs libipc)
 *   ./client [NAME [TEXT]]     sends TEXT to NAME ("hello" to "echo" unless given)
 */
#include <ipc.h>

#include <stdio.h>
#include <string.h>

/* The end of an asynchronous call: runs inside ipc_poll. */
static void on_answer(int status, const ipc_message_t *reply, void *user_data) {
    int *outstanding = (int *)user_data;
    --*outstanding;
    if (status != IPC_OK) {
        fprintf(stderr, "client: %s\n", ipc_strerror(status)); /* reply is NULL */
        return;
    }
    printf("callback: %.*s\n", (int)reply->payload_size, (char *)reply->payload);
}

int main(int argc, char **argv) {
    const char *name = argc > 1 ? argv[1] : "echo";
    const char *text = argc > 2 ? argv[2] : "hello";
    service_id_t service;
    char buffer[256];
    void *response;
    size_t size;
    int rc, outstanding = 0;

    /* Wait up to 5 s for somebody to serve the name. The id stays good, whoever does. */
    if ((rc = ipc_init(NULL)) || (rc = ipc_wait_service(name, 5000, &service))) goto failed;

    /* 1. Wait for the answer; it comes in memory of the library. */
    if ((rc = ipc_call(service, text, strlen(text), &response, &size, 1000))) goto failed;
    printf("call: %.*s\n", (int)size, (char *)response);
    ipc_free(response);

    /* 2. The same into memory of our own: the fastest way. */
    rc = ipc_call_into(service, text, strlen(text), buffer, sizeof buffer, &size, 1000);
    if (rc == IPC_EMSGSIZE)
        printf("call_into: %zu bytes do not fit\n", size);
    else if (rc)
        goto failed;
    else
        printf("call_into: %.*s\n", (int)size, buffer);

    /* 3. Send now, do something else, get the answer in a callback. */
    rc = ipc_send_async_ex(service, text, strlen(text), PRIORITY_NORMAL, 1000, on_answer,
                           &outstanding, NULL);
    if (rc) goto failed;
    for (outstanding++; outstanding > 0;)
        if ((rc = ipc_poll(IPC_WAIT_FOREVER)) < 0) goto failed;

    /* 4. A one-way message: nobody answers it. */
    if ((rc = ipc_send_async(service, "and goodbye", 11, NULL))) goto failed;
    return ipc_shutdown();

failed:
    fprintf(stderr, "client: %s\n", ipc_strerror(rc));
    return 1;
}
