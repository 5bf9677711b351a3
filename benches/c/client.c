/*
 * The C side of the benchmarks: calls or floods a service, and prints one line of JSON.
 *
 *     client call|call_into|one_way SERVICE SIZE SECONDS CPU
 *
 * SERVICE answers a request with its own payload; SERVICE.sink answers any request with the
 * number of one-way messages that came so far, 8 bytes, little-endian. Latencies are in ns.
 */
#define _GNU_SOURCE
#include <ipc.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { LONGEST_NS = 1 << 20, DEADLINE_MS = 30000, BATCH = 4096 };

static uint32_t histogram[LONGEST_NS];
static uint64_t recorded;
static double total_ns;
static unsigned shortest = LONGEST_NS;

static uint64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

/* The invariant time-stamp counter costs a third of clock_gettime. */
#if defined(__x86_64__)
static double ns_per_tick;
static uint64_t ticks(void) { return __builtin_ia32_rdtsc(); }
static void calibrate(void) {
    uint64_t from = ticks(), start = now_ns(), end;
    while ((end = now_ns()) < start + 20000000u) {}
    ns_per_tick = (double)(end - start) / (double)(ticks() - from);
}
#else
static double ns_per_tick = 1;
static uint64_t ticks(void) { return now_ns(); }
static void calibrate(void) {}
#endif

static void record(uint64_t passed) {
    uint64_t ns = (uint64_t)((double)passed * ns_per_tick);
    histogram[ns < LONGEST_NS ? ns : LONGEST_NS - 1]++;
    recorded++;
    total_ns += (double)ns;
    if (ns < shortest) shortest = (unsigned)ns;
}

static unsigned quantile(double part) {
    uint64_t left = (uint64_t)(part * (double)recorded);
    unsigned ns = 0;
    while (ns < LONGEST_NS - 1 && left >= histogram[ns]) left -= histogram[ns++];
    return ns;
}

static void check(int status, const char *what) {
    if (status < 0) {
        fprintf(stderr, "client: %s: %s\n", what, ipc_strerror(status));
        exit(1);
    }
}

static service_id_t find(const char *name) {
    service_id_t id;
    check(ipc_wait_service(name, DEADLINE_MS, &id), name);
    return id;
}

static void call(service_id_t service, const char *payload, size_t size) {
    void *answer;
    size_t length;
    check(ipc_call(service, payload, size, &answer, &length, DEADLINE_MS), "ipc_call");
    if (length != size) exit(1);
    ipc_free(answer);
}

static void call_into(service_id_t service, const char *payload, char *answer, size_t size) {
    size_t length;
    check(ipc_call_into(service, payload, size, answer, size, &length, DEADLINE_MS),
          "ipc_call_into");
    if (length != size) exit(1);
}

static void round_trips(int into, service_id_t service, size_t size, double seconds) {
    char *payload = calloc(1, size + 1), *answer = calloc(1, size + 1);
    uint64_t start = now_ns(), warm = start + (uint64_t)(seconds * 0.25e9);
    uint64_t end = warm + (uint64_t)(seconds * 1e9);
    while (now_ns() < end) {
        int is_warm = now_ns() >= warm;
        for (int i = 0; i < 100; i++) {
            uint64_t from = ticks();
            if (into) call_into(service, payload, answer, size);
            else call(service, payload, size);
            uint64_t passed = ticks() - from;
            if (is_warm) record(passed);
        }
    }
    printf("{\"p50\":%u,\"p95\":%u,\"p99\":%u,\"min\":%u,\"mean\":%.1f,\"n\":%llu}\n",
           quantile(0.5), quantile(0.95), quantile(0.99), shortest,
           total_ns / (double)recorded, (unsigned long long)recorded);
    free(payload);
    free(answer);
}

static uint64_t counted(service_id_t sink) {
    uint64_t count = 0;
    size_t length;
    check(ipc_call_into(sink, NULL, 0, &count, sizeof count, &length, DEADLINE_MS), "count");
    return count;
}

static uint64_t flood(service_id_t sink, const char *payload, size_t size, double seconds) {
    uint64_t sent = 0, end = now_ns() + (uint64_t)(seconds * 1e9);
    while (now_ns() < end) {
        for (int i = 0; i < BATCH; i++) {
            check(ipc_send_async_ex(sink, payload, size, PRIORITY_NORMAL, DEADLINE_MS, NULL, NULL,
                                    NULL), "ipc_send_async_ex");
        }
        sent += BATCH;
    }
    return sent;
}

static void one_way(service_id_t sink, size_t size, double seconds) {
    char *payload = calloc(1, size + 1);
    flood(sink, payload, size, seconds * 0.25);
    uint64_t before = counted(sink), start = now_ns();
    uint64_t sent = flood(sink, payload, size, seconds);
    uint64_t arrived = counted(sink) - before;
    double passed = (double)(now_ns() - start) / 1e9;
    if (arrived != sent) {
        fprintf(stderr, "client: %llu messages sent, %llu arrived\n", (unsigned long long)sent,
                (unsigned long long)arrived);
        exit(1);
    }
    printf("{\"items\":%llu,\"seconds\":%.6f}\n", (unsigned long long)sent, passed);
    free(payload);
}

int main(int argc, char **argv) {
    if (argc != 6) {
        fprintf(stderr, "usage: %s call|call_into|one_way SERVICE SIZE SECONDS CPU\n", argv[0]);
        return 2;
    }
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    CPU_SET(atoi(argv[5]), &cpus);
    if (sched_setaffinity(0, sizeof cpus, &cpus) != 0) perror("sched_setaffinity");
    calibrate();

    int is_one_way = strcmp(argv[1], "one_way") == 0;
    ipc_config_t config = IPC_CONFIG_INIT;
    config.spin_us = UINT32_MAX;
    if (is_one_way) config.ring_cells = 4096;
    check(ipc_init(&config), "ipc_init");
    char sink[260];
    snprintf(sink, sizeof sink, "%s.sink", argv[2]);
    service_id_t service = find(is_one_way ? sink : argv[2]);
    size_t size = strtoul(argv[3], NULL, 10);
    if (is_one_way) one_way(service, size, atof(argv[4]));
    else round_trips(strcmp(argv[1], "call_into") == 0, service, size, atof(argv[4]));
    return ipc_shutdown() == IPC_OK ? 0 : 1;
}
