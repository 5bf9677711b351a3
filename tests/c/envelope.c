/* Envelopes: sealed and opened, altered, under another key, and refused. */
#include "check.h"

static void fill(ipc_message_t *msg, const void *bytes, size_t size) {
    memset(msg, 0, sizeof *msg);
    msg->message_id = 77;
    msg->payload = (uint8_t *)bytes;
    msg->payload_size = (uint32_t)size;
}

static void goes_there_and_back(const char *text, size_t size) {
    encryption_key_t key, same;
    ipc_message_t msg, before;
    uint8_t *sealed;
    memset(&key, 0x42, sizeof key);
    same = key;
    fill(&msg, text, size);
    OK(ipc_encrypt_message(&msg, &key));
    CHECK_IS(msg.payload_size, size + 44);
    CHECK(msg.payload != NULL && (const char *)msg.payload != text);
    CHECK(memcmp(msg.payload, "IPE1", 4) == 0);
    CHECK_IS(msg.message_id, 77);
    sealed = msg.payload;
    OK(ipc_decrypt_message(&msg, &key));
    CHECK_IS(msg.payload_size, size);
    CHECK(msg.payload != NULL && msg.payload != sealed);
    CHECK(size == 0 || memcmp(msg.payload, text, size) == 0);
    ipc_free(msg.payload);

    /* Whatever is wrong with it, the message stays as it was. */
    fill(&msg, sealed, size + 44);
    sealed[size + 43] ^= 1;
    before = msg;
    CHECK_IS(ipc_decrypt_message(&msg, &key), IPC_EAUTH);
    CHECK(msg.payload == before.payload && msg.payload_size == before.payload_size);
    sealed[size + 43] ^= 1;
    key.bytes[31] ^= 1;
    CHECK_IS(ipc_decrypt_message(&msg, &key), IPC_EAUTH);
    key.bytes[31] ^= 1;
    sealed[3] = '9';
    CHECK_IS(ipc_decrypt_message(&msg, &key), IPC_EPROTO);
    sealed[3] = '1';
    msg.payload_size = 43;
    CHECK_IS(ipc_decrypt_message(&msg, &key), IPC_EAUTH);
    msg.payload_size = 3;
    CHECK_IS(ipc_decrypt_message(&msg, &key), IPC_EPROTO);
    CHECK(memcmp(&key, &same, sizeof key) == 0);
    ipc_free(sealed);
}

static void no_text_looks_the_same_twice(void) {
    encryption_key_t key;
    ipc_message_t one, other;
    memset(&key, 7, sizeof key);
    fill(&one, "text", 4);
    fill(&other, "text", 4);
    OK(ipc_encrypt_message(&one, &key));
    OK(ipc_encrypt_message(&other, &key));
    CHECK(memcmp(one.payload + 4, other.payload + 4, 44) != 0);
    ipc_free(one.payload);
    ipc_free(other.payload);
}

static void wrong_arguments_are_refused(void) {
    encryption_key_t key;
    ipc_message_t msg;
    memset(&key, 7, sizeof key);
    fill(&msg, NULL, 4);
    CHECK_IS(ipc_encrypt_message(&msg, &key), IPC_EINVAL);
    CHECK_IS(ipc_encrypt_message(NULL, &key), IPC_EINVAL);
    CHECK_IS(ipc_encrypt_message(&msg, NULL), IPC_EINVAL);
    CHECK_IS(ipc_decrypt_message(NULL, &key), IPC_EINVAL);
    CHECK_IS(ipc_decrypt_message(&msg, NULL), IPC_EINVAL);
}

int main(void) {
    static char text[100000];
    encryption_key_t key;
    ipc_message_t msg;
    memset(&key, 7, sizeof key);
    fill(&msg, "text", 4);
    CHECK_IS(ipc_encrypt_message(&msg, &key), IPC_ENOTINIT);
    memset(text, 'x', sizeof text);
    OK(ipc_init(NULL));
    goes_there_and_back("", 0);
    goes_there_and_back("hello", 5);
    goes_there_and_back(text, sizeof text);
    no_text_looks_the_same_twice();
    wrong_arguments_are_refused();
    return ipc_shutdown();
}
