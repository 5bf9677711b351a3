/* Payloads of every size class, by ipc_call and ipc_call_into. */
#include "check.h"

static void serve_echo(void) { serve("sizes-echo", echo); }

static unsigned char *pattern(size_t size, unsigned seed) {
    unsigned char *bytes = (unsigned char *)malloc(size + 1);
    size_t i;
    CHECK(bytes != NULL);
    for (i = 0; i < size; i++) {
        seed = seed * 1664525u + 1013904223u;
        bytes[i] = (unsigned char)(seed >> 24);
    }
    return bytes;
}

int main(void) {
    const size_t sizes[] = {0, 1, 47, 48, 49, 64, 255, 1024, 4096, 100 * 1024, 1 << 20, 3 << 20};
    pid_t server = spawn(serve_echo);
    service_id_t dest;
    size_t i;
    unsigned char *big, both[64];
    void *response = NULL, *kept[8];
    size_t size = 0;
    ipc_config_t config = IPC_CONFIG_INIT;

    OK(ipc_init(NULL));
    dest = find("sizes-echo");
    for (i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        unsigned char *sent = pattern(sizes[i], (unsigned)i);
        unsigned char *got = (unsigned char *)malloc(sizes[i] + 2);
        CHECK(got != NULL);
        OK(ipc_call(dest, sent, sizes[i], &response, &size, SOON_MS));
        CHECK(response != NULL && ((size_t)response & 15) == 0);
        CHECK_IS(size, sizes[i]);
        CHECK(memcmp(response, sent, size) == 0);
        memset(response, 0, size);
        ipc_free(response);

        got[sizes[i]] = 0x5a;
        got[sizes[i] + 1] = 0x5a;
        OK(ipc_call_into(dest, sent, sizes[i], got, sizes[i] + 1, &size, SOON_MS));
        CHECK_IS(size, sizes[i]);
        CHECK(memcmp(got, sent, size) == 0);
        CHECK(got[sizes[i] + 1] == 0x5a);
        OK(ipc_call_into(dest, sent, sizes[i], got, sizes[i], &size, SOON_MS));
        CHECK_IS(size, sizes[i]);

        /* One byte too few: the need is told, the buffer's end is left alone. */
        if (sizes[i] > 0) {
            size = 0;
            got[sizes[i] - 1] = 0x5a;
            CHECK_IS(ipc_call_into(dest, sent, sizes[i], got, sizes[i] - 1, &size, SOON_MS), IPC_EMSGSIZE);
            CHECK_IS(size, sizes[i]);
            CHECK(got[sizes[i] - 1] == 0x5a);
        }
        free(sent);
        free(got);
    }

    /* The channel is none the worse for a lost response. */
    ask(dest, "still there", "still there");
    OK(ipc_call(dest, NULL, 0, &response, &size, SOON_MS));
    CHECK(response != NULL);
    CHECK_IS(size, 0);
    ipc_free(response);
    OK(ipc_call_into(dest, NULL, 0, NULL, 0, &size, SOON_MS));
    CHECK_IS(size, 0);
    CHECK_IS(ipc_call_into(dest, "x", 1, NULL, 0, &size, SOON_MS), IPC_EMSGSIZE);
    CHECK_IS(size, 1);

    /* One buffer for both, wholly and in part. */
    memcpy(both, "in and out", 10);
    OK(ipc_call_into(dest, both, 10, both, sizeof both, &size, SOON_MS));
    CHECK(size == 10 && memcmp(both, "in and out", 10) == 0);
    OK(ipc_call_into(dest, both, 10, both + 3, sizeof both - 3, &size, SOON_MS));
    CHECK(size == 10 && memcmp(both + 3, "in and out", 10) == 0);

    /* Responses are the caller's until freed, in any order. */
    for (i = 0; i < 8; i++) {
        char text[2] = {(char)('a' + i), 0};
        OK(ipc_call(dest, text, 1, &kept[i], &size, SOON_MS));
    }
    for (i = 0; i < 8; i++) CHECK(*(char *)kept[i] == (char)('a' + i));
    for (i = 0; i < 8; i++) ipc_free(kept[(i * 3) % 8]);

    /* The default limit is 64 MiB. The pages of `big` are never touched. */
    big = (unsigned char *)malloc((64u << 20) + 1);
    CHECK(big != NULL);
    size = 4711;
    CHECK_IS(ipc_call(dest, big, (64u << 20) + 1, &response, &size, SOON_MS), IPC_EMSGSIZE);
    CHECK_IS(ipc_call_into(dest, big, (64u << 20) + 1, big, 0, &size, SOON_MS), IPC_EMSGSIZE);
    CHECK_IS(ipc_send_async(dest, big, (64u << 20) + 1, NULL), IPC_EMSGSIZE);
    CHECK_IS(ipc_call(dest, big, SIZE_MAX, &response, &size, SOON_MS), IPC_EMSGSIZE);
    CHECK_IS(size, 4711);
    free(big);
    OK(ipc_shutdown());

    config.max_payload = 1000;
    OK(ipc_init(&config));
    big = pattern(1001, 1);
    CHECK_IS(ipc_call(dest, big, 1001, &response, &size, SOON_MS), IPC_EMSGSIZE);
    OK(ipc_call(dest, big, 1000, &response, &size, SOON_MS));
    ipc_free(response);
    free(big);
    OK(ipc_shutdown());
    dismiss(server);
    return 0;
}
