/* Shared regions: made, granted, mapped, published, awaited, taken back and left behind. */
#include "check.h"

#include <stdint.h>

#define SIZE 100000

/* The owner serves a name; the reader, another, so that each finds the other. */
static void reader(void) {
    service_id_t me, owner;
    shared_region_id_t region = 0;
    uint64_t version = 0;
    size_t size = 0, got = 0;
    void *first = NULL, *again = NULL;
    const unsigned char *data;
    OK(ipc_init(NULL));
    OK(ipc_register_service("region-reader", &me));
    owner = find("region-owner");
    OK(ipc_call_into(owner, "which", 5, &region, sizeof region, &got, SOON_MS));
    CHECK_IS(got, sizeof region);

    CHECK_IS(ipc_region_size(region, &size), IPC_ENOENT);
    CHECK_IS(ipc_sync_shared_region(region), IPC_ENOENT);
    OK(ipc_map_shared_region(region, &first));
    OK(ipc_map_shared_region(region, &again));
    CHECK(first == again && (uintptr_t)first % 4096 == 0);
    OK(ipc_region_size(region, &size));
    CHECK_IS(size, SIZE);
    CHECK_IS(ipc_sync_shared_region(region), IPC_EACCES);
    CHECK_IS(ipc_grant_shared_region(region, me, false), IPC_EACCES);
    CHECK_IS(ipc_revoke_shared_region(region, me), IPC_EACCES);

    OK(ipc_wait_shared_region(region, 0, &version, SOON_MS));
    CHECK_IS(version, 1);
    data = (const unsigned char *)first;
    CHECK_IS(data[0], 7);
    CHECK_IS(data[SIZE - 1], 9);
    CHECK_IS(ipc_wait_shared_region(region, version, &version, 1), IPC_ETIMEDOUT);
    CHECK_IS(version, 1);
    /* The owner takes the grant back, and then everything. */
    OK(ipc_call_into(owner, "back!", 5, &region, sizeof region, &got, SOON_MS));
    CHECK_IS(ipc_wait_shared_region(region, version, &version, SOON_MS), IPC_EACCES);
    OK(ipc_unmap_shared_region(region));
    CHECK_IS(ipc_unmap_shared_region(region), IPC_ENOENT);
    CHECK_IS(ipc_map_shared_region(region, &first), IPC_EACCES);
    OK(ipc_call_into(owner, "open!", 5, &region, sizeof region, &got, SOON_MS));
    OK(ipc_map_shared_region(region, &first));
    memset(first, 5, SIZE);
    OK(ipc_sync_shared_region(region));
    OK(ipc_call_into(owner, "done!", 5, &version, sizeof version, &got, SOON_MS));
    CHECK_IS(ipc_wait_shared_region(region, version, &version, SOON_MS), IPC_EPEERDIED);
    CHECK_IS(((unsigned char *)first)[SIZE - 1], 5);
    OK(ipc_unmap_shared_region(region));
    OK(ipc_shutdown());
}

static shared_region_id_t shown, opened;

static void *await_it(void *region) {
    uint64_t version = 7;
    CHECK_IS(ipc_wait_shared_region(*(shared_region_id_t *)region, 0, &version, IPC_WAIT_FOREVER),
             IPC_ENOENT);
    CHECK_IS(version, 7);
    return NULL;
}

/* Who waits for a region without limit is told when another thread unmaps it. */
static void unmap_beside_a_wait(void) {
    shared_region_id_t region = 0;
    uint64_t version = 0;
    pthread_t waiter;
    int round;
    for (round = 0; round < 20; round++) {
        OK(ipc_create_shared_region(SIZE, &region));
        CHECK_IS(pthread_create(&waiter, NULL, await_it, &region), 0);
        /* In every other round the other thread is likely to sleep by now. */
        if (round % 2) CHECK_IS(ipc_wait_shared_region(region, 0, &version, 2), IPC_ETIMEDOUT);
        OK(ipc_unmap_shared_region(region));
        CHECK_IS(pthread_join(waiter, NULL), 0);
    }
}

/* The same bytes on other memory. */
static void rotate(void) {
    shared_region_id_t first = 0, other = 0;
    void *place = NULL;
    size_t size = 0;
    uint32_t pages = 9, before = 9;
    CHECK_IS(ipc_rotate_shared_region(12345, &other), IPC_ENOENT);
    CHECK_IS(ipc_region_pages(12345, &pages), IPC_ENOENT);
    CHECK(other == 0 && pages == 9);
    OK(ipc_create_shared_region_ex(SIZE, IPC_REGION_HUGE_PAGES, IPC_ANY_NUMA_NODE, &first));
    CHECK_IS(ipc_rotate_shared_region(first, NULL), IPC_EINVAL);
    CHECK_IS(ipc_region_pages(first, NULL), IPC_EINVAL);
    OK(ipc_region_pages(first, &before));
    CHECK(before <= IPC_PAGES_HUGE);
    OK(ipc_map_shared_region(first, &place));
    memset(place, 'r', SIZE);
    OK(ipc_rotate_shared_region(first, &other));
    CHECK(other != 0 && other != first);
    OK(ipc_unmap_shared_region(first));
    OK(ipc_region_size(other, &size));
    CHECK_IS(size, SIZE);
    OK(ipc_map_shared_region(other, &place));
    CHECK_IS(((char *)place)[SIZE - 1], 'r');
    OK(ipc_unmap_shared_region(other));
    OK(ipc_create_shared_region(SIZE, &first));
    OK(ipc_region_pages(first, &pages));
    CHECK_IS(pages, IPC_PAGES_SMALL);
    OK(ipc_unmap_shared_region(first));
}
static int is_over;

static void on_request(const ipc_message_t *message, void *user) {
    service_id_t from = message->source_service_id;
    void *place = NULL;
    (void)user;
    CHECK_IS(message->payload_size, 5);
    switch (message->payload[0]) {
    case 'w':
        OK(ipc_grant_shared_region(shown, from, false));
        CHECK_IS(ipc_grant_shared_region(shown, from, true), IPC_EINVAL);
        OK(ipc_map_shared_region(shown, &place));
        ((unsigned char *)place)[0] = 7;
        ((unsigned char *)place)[SIZE - 1] = 9;
        OK(ipc_reply(message, &shown, sizeof shown));
        OK(ipc_sync_shared_region(shown));
        break;
    case 'b':
        OK(ipc_revoke_shared_region(shown, from));
        OK(ipc_reply(message, &shown, sizeof shown));
        break;
    case 'o':
        OK(ipc_create_shared_region_ex(SIZE, IPC_REGION_HUGE_PAGES, IPC_ANY_NUMA_NODE, &opened));
        OK(ipc_grant_shared_region(opened, from, true));
        OK(ipc_reply(message, &opened, sizeof opened));
        break;
    default: {
        uint64_t version = 0;
        OK(ipc_wait_shared_region(opened, 0, &version, SOON_MS));
        OK(ipc_map_shared_region(opened, &place));
        CHECK_IS(((unsigned char *)place)[0], 5);
        OK(ipc_unmap_shared_region(opened));
        OK(ipc_reply(message, &version, sizeof version));
        is_over = 1;
    }
    }
}

int main(void) {
    service_id_t id;
    shared_region_id_t none = 0;
    uint64_t version = 0;
    size_t size = 0;
    void *place = NULL;
    pid_t other = spawn(reader);

    CHECK_IS(ipc_create_shared_region(1, &none), IPC_ENOTINIT);
    OK(ipc_init(NULL));
    CHECK_IS(ipc_create_shared_region(0, &none), IPC_EINVAL);
    CHECK_IS(ipc_create_shared_region(1, NULL), IPC_EINVAL);
    CHECK_IS(ipc_create_shared_region(SIZE_MAX, &none), IPC_EINVAL);
    CHECK_IS(ipc_create_shared_region_ex(1, 8, IPC_ANY_NUMA_NODE, &none), IPC_EINVAL);
    CHECK_IS(ipc_create_shared_region_ex(1, 0, 900, &none), IPC_EINVAL);
    CHECK_IS(ipc_map_shared_region(12345, &place), IPC_ENOENT);
    CHECK_IS(ipc_map_shared_region(12345, NULL), IPC_EINVAL);
    CHECK_IS(ipc_wait_shared_region(12345, 0, &version, 0), IPC_ENOENT);
    CHECK_IS(ipc_wait_shared_region(12345, 0, NULL, 0), IPC_EINVAL);
    CHECK_IS(ipc_region_size(12345, &size), IPC_ENOENT);
    CHECK_IS(ipc_region_size(12345, NULL), IPC_EINVAL);
    CHECK(none == 0 && place == NULL && version == 0 && size == 0);

    unmap_beside_a_wait();
    rotate();

    OK(ipc_create_shared_region(SIZE, &shown));
    CHECK_IS(ipc_grant_shared_region(shown, 0, false), IPC_EINVAL);
    CHECK_IS(ipc_grant_shared_region(shown, 4000000000u, false), IPC_ENOENT);
    CHECK_IS(ipc_revoke_shared_region(shown, 0), IPC_EINVAL);
    OK(ipc_register_service("region-owner", &id));
    OK(ipc_receive_async(0, on_request));
    while (!is_over) CHECK(ipc_poll(SOON_MS) >= 0);
    join(other);
    /* What is left is let go of with the rest. */
    OK(ipc_shutdown());
    return 0;
}
