/* One descriptor for everything: calls, events, versions of regions and messages of queues all make
 * ipc_fd readable, and are handled inside ipc_poll. The region's id comes in an event. */
#include "check.h"

#include <sys/epoll.h>

#define KIND 4242u
#define SIZE 8192

static char queue_name[40];

/* Who has the region, publishes, sends and calls. */
static void peer(void) {
    service_id_t service;
    shared_region_id_t region;
    queue_id_t queue;
    void *place = NULL;
    char watched = 0;
    size_t size = 0;
    OK(ipc_init(NULL));
    service = find("one-fd");
    OK(ipc_create_shared_region(SIZE, &region));
    OK(ipc_grant_shared_region(region, service, false));
    OK(ipc_broadcast_event(KIND, &region, sizeof region));
    while (!watched) OK(ipc_call_into(service, "?", 1, &watched, 1, &size, SOON_MS));
    OK(ipc_map_shared_region(region, &place));
    memset(place, 'v', SIZE);
    OK(ipc_sync_shared_region(region));
    OK(ipc_queue_open(queue_name, 0, &queue));
    OK(ipc_queue_send(queue, "a job", 5, PRIORITY_NORMAL, SOON_MS, NULL));
    OK(ipc_queue_close(queue));
    /* The region goes with its owner, once all else was heard. */
    for (watched = 0; watched != 2;)
        OK(ipc_call_into(service, "!", 1, &watched, 1, &size, SOON_MS));
    OK(ipc_shutdown());
}

static shared_region_id_t region;
static int calls, events, jobs, version, end, queue_end;

static void on_version(shared_region_id_t id, int status, uint64_t told, void *user) {
    CHECK(user == &version);
    CHECK_IS(id, region);
    if (status != IPC_OK) {
        CHECK_IS(end, 0);
        end = status;
        return;
    }
    version = (int)told;
}

static void on_event(event_type_t type, const void *data, size_t size, void *user) {
    (void)user;
    CHECK_IS(type, KIND);
    CHECK_IS(size, sizeof region);
    memcpy(&region, data, size);
    {
        void *place = NULL;
        OK(ipc_map_shared_region(region, &place));
    }
    OK(ipc_watch_shared_region(region, 0, on_version, &version));
    events++;
}

static void on_job(queue_id_t queue, int status, const void *data, size_t size,
                   const ipc_delivery_t *delivery, void *user) {
    CHECK(user == &jobs);
    if (status != IPC_OK) {
        CHECK(data == NULL && delivery == NULL);
        queue_end = status;
        return;
    }
    CHECK_IS(size, 5);
    CHECK(memcmp(data, "a job", 5) == 0);
    CHECK_IS(delivery->attempt, 1);
    OK(ipc_queue_ack(queue, delivery));
    CHECK_IS(ipc_queue_ack(queue, delivery), IPC_ESTALE);
    jobs++;
}

static void on_request(const ipc_message_t *message, void *user) {
    char told = (char)(events > 0);
    (void)user;
    calls++;
    if (message->payload[0] == '!') told = version == 1 && jobs == 1 ? 2 : 1;
    OK(ipc_reply(message, &told, 1));
}

int main(void) {
    struct epoll_event ready;
    service_id_t id;
    queue_id_t queue = 0;
    uint64_t lost = 1;
    int epoll, fd;
    pid_t other;
    CHECK(snprintf(queue_name, sizeof queue_name, "one-fd-%ld", (long)getpid()) > 0);
    CHECK_IS(ipc_queue_handle(1, on_job, NULL), IPC_ENOTINIT);
    CHECK_IS(ipc_watch_shared_region(1, 0, on_version, NULL), IPC_ENOTINIT);
    other = spawn(peer);
    OK(ipc_init(NULL));
    CHECK_IS(ipc_queue_handle(12345, on_job, NULL), IPC_ENOENT);
    CHECK_IS(ipc_watch_shared_region(12345, 0, on_version, NULL), IPC_ENOENT);
    fd = ipc_fd();
    CHECK(fd >= 0);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    memset(&ready, 0, sizeof ready);
    ready.events = EPOLLIN | EPOLLET;
    CHECK_IS(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &ready), 0);

    OK(ipc_receive_async(0, on_request));
    OK(ipc_subscribe_event(KIND, on_event));
    OK(ipc_queue_open(queue_name, 0, &queue));
    /* Replaced, taken away and put back. */
    OK(ipc_queue_handle(queue, on_job, NULL));
    OK(ipc_queue_handle(queue, NULL, NULL));
    OK(ipc_queue_handle(queue, on_job, &jobs));
    OK(ipc_register_service("one-fd", &id));
    /* Sleeps in epoll alone; one poll each time. */
    while (!(events && version && jobs && end)) {
        int count;
        do count = epoll_wait(epoll, &ready, 1, SOON_MS);
        while (count < 0 && errno == EINTR);
        CHECK_IS(count, 1);
        CHECK(ipc_poll(0) >= 0);
    }
    CHECK_IS(events, 1);
    CHECK_IS(version, 1);
    CHECK_IS(jobs, 1);
    CHECK_IS(end, IPC_EPEERDIED);
    CHECK(calls >= 2);
    OK(ipc_event_losses(KIND, &lost));
    CHECK_IS(lost, 0);
    {
        const char *data;
        void *place = NULL;
        OK(ipc_map_shared_region(region, &place));
        data = (const char *)place;
        CHECK_IS(data[SIZE - 1], 'v');
    }
    join(other);
    OK(ipc_watch_shared_region(region, 1, on_version, NULL));
    OK(ipc_unmap_shared_region(region));
    CHECK_IS(ipc_watch_shared_region(region, 1, on_version, NULL), IPC_ENOENT);
    OK(ipc_queue_close(queue));
    OK(ipc_shutdown());
    CHECK_IS(queue_end, 0);
    return 0;
}
