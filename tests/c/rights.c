/* Rights: what one may do, tokens that say so, and what no token is. */
#include "check.h"

#include <time.h>

#define CALL (1u << OP_CALL)
#define SEND (1u << OP_SEND)

static auth_token_t shown;
static service_id_t presenter;
static int verdict = 1;

/* Looks at the token that came, as a service would. */
static void on_token(const ipc_message_t *message, void *user) {
    auth_token_t changed;
    int count = 0, bit;
    (void)user;
    CHECK_IS(message->payload_size, sizeof shown);
    memcpy(&shown, message->payload, sizeof shown);
    presenter = message->source_service_id;
    verdict = ipc_authenticate_service(presenter, &shown);
    /* Not one bit of it is anybody's to change. The four bytes of padding are none of it. */
    for (bit = 0; bit < (int)sizeof shown * 8; bit++) {
        if (bit / 8 >= 12 && bit / 8 < 16) continue;
        changed = shown;
        ((unsigned char *)&changed)[bit / 8] ^= (unsigned char)(1 << bit % 8);
        CHECK_IS(ipc_authenticate_service(presenter, &changed), IPC_EAUTH);
        count++;
    }
    CHECK_IS(count, 108 * 8);
    /* Nor is it of use to others. */
    CHECK_IS(ipc_authenticate_service(message->dest_service_id, &shown), IPC_EAUTH);
    CHECK_IS(ipc_authenticate_service(0, &shown), IPC_EAUTH);
    OK(ipc_reply(message, &verdict, sizeof verdict));
}

static int show(service_id_t service, const auth_token_t *token) {
    int answer = 1;
    size_t size = 0;
    OK(ipc_call_into(service, token, sizeof *token, &answer, sizeof answer, &size, SOON_MS));
    CHECK_IS(size, sizeof answer);
    return answer;
}

static void client(void) {
    service_id_t service, other;
    auth_token_t token, untouched;
    OK(ipc_init(NULL));
    service = find("rights-service");
    other = find("rights-other");

    OK(ipc_verify_permissions(0, service, OP_CALL));
    CHECK_IS(ipc_verify_permissions(0, 4000000000u, OP_CALL), IPC_ENOENT);
    CHECK_IS(ipc_verify_permissions(4000000000u, service, OP_CALL), IPC_ENOENT);
    CHECK_IS(ipc_verify_permissions(0, service, (operation_type_t)6), IPC_EINVAL);

    memset(&token, 7, sizeof token);
    untouched = token;
    CHECK_IS(ipc_request_token(service, 0, 1000, &token), IPC_EINVAL);
    CHECK_IS(ipc_request_token(service, (permission_mask_t)1 << 60, 1000, &token), IPC_EINVAL);
    CHECK_IS(ipc_request_token(service, CALL, 0, &token), IPC_EINVAL);
    CHECK_IS(ipc_request_token(4000000000u, CALL, 1000, &token), IPC_ENOENT);
    CHECK_IS(ipc_request_token(service, CALL, 1000, NULL), IPC_EINVAL);
    CHECK_IS(ipc_authenticate_service(service, NULL), IPC_EINVAL);
    CHECK_IS(memcmp(&token, &untouched, sizeof token), 0);

    OK(ipc_request_token(service, CALL | SEND, 60000, &token));
    CHECK_IS(token.version, 1);
    CHECK_IS(token.permissions, CALL | SEND);
    CHECK_IS(token.audience, service);
    CHECK(token.subject != 0 && token.expiry_time != 0);
    CHECK_IS(show(service, &token), IPC_OK);

    /* One for another service is none here. */
    OK(ipc_request_token(other, CALL, 60000, &token));
    CHECK_IS(show(service, &token), IPC_EAUTH);

    /* One whose time is over is none. */
    OK(ipc_request_token(service, CALL, 1, &token));
    while ((uint64_t)time(NULL) < token.expiry_time) CHECK_IS(ipc_poll(20), 0);
    CHECK_IS(show(service, &token), IPC_EAUTH);
    OK(ipc_shutdown());
}

static void stranger(void) {
    service_id_t id;
    OK(ipc_init(NULL));
    OK(ipc_register_service("rights-other", &id));
    OK(ipc_run());
}

int main(void) {
    service_id_t id;
    int status = 1;
    pid_t other = spawn(stranger), caller = spawn(client);
    OK(ipc_init(NULL));
    OK(ipc_register_service("rights-service", &id));
    OK(ipc_receive_async(0, on_token));
    while (waitpid(caller, &status, WNOHANG) == 0) CHECK(ipc_poll(100) >= 0);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    CHECK_IS(verdict, IPC_EAUTH);
    kill(other, SIGKILL);
    OK(ipc_shutdown());
    return 0;
}
