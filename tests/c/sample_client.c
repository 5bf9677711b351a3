#include <ipc.h>
#include <stdio.h>
int main(void) {
    service_id_t echo; void *r; size_t n; int rc;
    if ((rc = ipc_init(NULL)) || (rc = ipc_discover_service("echo", &echo)) || (rc = ipc_call(echo, "hello", 5, &r, &n, 1000))) {
        fprintf(stderr, "%s\n", ipc_strerror(rc)); return 1; }
    printf("%.*s\n", (int)n, (char *)r); ipc_free(r); return ipc_shutdown();
}
