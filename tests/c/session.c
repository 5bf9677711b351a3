/* A process that has all its channels encrypted: what is told of their sessions is the same at both
 * ends, and names them; a plain channel has none. */
#include "check.h"

static void answer(const ipc_message_t *msg, void *user_data) {
    (void)user_data;
    if (msg->type != MSG_REQUEST) return;
    if (msg->payload_size == 6 && memcmp(msg->payload, "client", 6) == 0) {
        ipc_session_t session = IPC_SESSION_INIT;
        OK(ipc_get_session(msg->source_service_id, &session));
        OK(ipc_reply(msg, &session, sizeof session));
    } else {
        OK(ipc_reply(msg, msg->security.session_key, sizeof msg->security.session_key));
    }
}

static void serve_encrypted(void) { serve("sessions", answer); }

static void answered(int status, const ipc_message_t *reply, void *user_data) {
    OK(status);
    memcpy(user_data, reply->security.session_key, sizeof reply->security.session_key);
}

static void on_a_plain_channel(service_id_t dest) {
    ipc_session_t session = IPC_SESSION_INIT;
    uint32_t key[8], none[8] = {0};
    size_t size;

    OK(ipc_init(NULL));
    CHECK_IS(ipc_get_session(dest, &session), IPC_ENOENT);
    OK(ipc_call_into(dest, "key", 3, key, sizeof key, &size, SOON_MS));
    CHECK_IS(size, sizeof key);
    CHECK(memcmp(key, none, sizeof none) == 0);
    CHECK_IS(ipc_get_session(dest, &session), IPC_ENOENT);
    OK(ipc_shutdown());
}

int main(void) {
    pid_t server = spawn(serve_encrypted);
    ipc_config_t config = IPC_CONFIG_INIT;
    ipc_session_t session = IPC_SESSION_INIT, other, nothing;
    service_id_t dest;
    uint32_t key[8], none[8] = {0};
    uint64_t id;
    size_t size;
    int i;

    CHECK_IS(ipc_get_session(1, &session), IPC_ENOTINIT);
    OK(ipc_init(NULL));
    dest = find("sessions");
    OK(ipc_shutdown());
    on_a_plain_channel(dest);

    config.flags = IPC_ENCRYPT_ALWAYS;
    OK(ipc_init(&config));
    CHECK_IS(ipc_get_session(dest, NULL), IPC_EINVAL);
    CHECK_IS(ipc_get_session(0, &session), IPC_EINVAL);
    memset(&nothing, 0, sizeof nothing);
    CHECK_IS(ipc_get_session(dest, &nothing), IPC_EINVAL);
    nothing.size = sizeof nothing - 1;
    CHECK_IS(ipc_get_session(dest, &nothing), IPC_EINVAL);
    CHECK_IS(ipc_get_session(dest, &session), IPC_ENOENT);

    for (i = 0; i < 5; i++) {
        OK(ipc_call_into(dest, "key", 3, key, sizeof key, &size, SOON_MS));
        CHECK_IS(size, sizeof key);
    }
    OK(ipc_get_session(dest, &session));
    CHECK_IS(session.size, sizeof session);
    CHECK_IS(session.pattern, IPC_PATTERN_XX);
    CHECK_IS(session.peer_pid, server);
    CHECK_IS(session.messages_sent, 5);
    CHECK_IS(session.messages_received, 5);
    CHECK_IS(session.refused, 0);
    CHECK(session.channel != 0 && session.since_ns != 0);
    /* The server saw it in the message itself. */
    CHECK(memcmp(key, none, sizeof none) != 0);
    CHECK(memcmp(key, session.fingerprint, sizeof key) == 0);

    OK(ipc_call_into(dest, "client", 6, &other, sizeof other, &size, SOON_MS));
    CHECK_IS(size, sizeof other);
    CHECK_IS(other.channel, session.channel);
    CHECK_IS(other.peer_pid, getpid());
    CHECK_IS(other.messages_received, 6);
    CHECK(memcmp(other.fingerprint, session.fingerprint, sizeof key) == 0);

    memset(key, 0, sizeof key);
    OK(ipc_send_async_ex(dest, "key", 3, PRIORITY_NORMAL, SOON_MS, answered, key, &id));
    for (i = 0; i == 0;) i = ipc_poll(SOON_MS);
    CHECK_IS(i, 1);
    CHECK(memcmp(key, session.fingerprint, sizeof key) == 0);
    CHECK_IS(ipc_get_session(0x7fffffff, &other), IPC_ENOENT);

    OK(ipc_shutdown());
    dismiss(server);
    return 0;
}
