/* Failover: who serves a name next, whether who does has failed, and changes of hands. */
#include "check.h"

#include <time.h>

static int tell[2];

static void who(const ipc_message_t *msg, void *user_data) {
    int pid = (int)getpid();
    (void)user_data;
    OK(ipc_reply(msg, &pid, sizeof pid));
}

/* Serves, or stands by; tells its instance, and goes on until it is killed. */
static void replica(void) {
    service_id_t id;
    OK(ipc_init(NULL));
    OK(ipc_receive_async(0, who));
    OK(ipc_register_service_ex("failover", IPC_SERVICE_IDEMPOTENT, &id));
    CHECK_IS(write(tell[1], &id, sizeof id), sizeof id);
    ipc_run();
}

static pid_t start(service_id_t *instance) {
    pid_t pid = spawn(replica);
    CHECK_IS(read(tell[0], instance, sizeof *instance), sizeof *instance);
    return pid;
}

/* The process that answers now. */
static pid_t serving(service_id_t name) {
    int pid = 0;
    size_t size = 0;
    OK(ipc_call_into(name, "", 0, &pid, sizeof pid, &size, SOON_MS));
    CHECK_IS(size, sizeof pid);
    return (pid_t)pid;
}

static void rest(void) {
    struct timespec moment = {0, 2000000};
    nanosleep(&moment, NULL);
}

static void until_serving(service_id_t name, pid_t pid) {
    while (serving(name) != pid) rest();
}

static failure_kind_t failure_of(service_id_t service, service_id_t wanted) {
    failure_info_t info;
    memset(&info, 0xA5, sizeof info);
    OK(ipc_detect_service_failure(service, &info));
    CHECK_IS(info.instance, wanted);
    CHECK_IS(info.failed, info.kind != FAILURE_NONE);
    CHECK_IS(info.exit_status, -1);
    CHECK_IS(info.signal, 0);
    CHECK((info.detected_at_ns != 0) == info.failed);
    CHECK(info.last_seen_ns != 0);
    return info.kind;
}

static void is_refused(service_id_t name, service_id_t instance) {
    service_id_t order[64];
    failover_config_t config;
    failure_info_t info, untouched;
    int at;
    for (at = 0; at < 64; at++) order[at] = instance;
    memset(&config, 0, sizeof config);
    CHECK_IS(ipc_configure_failover(name, NULL), IPC_EINVAL);
    config.strategy = (failover_strategy_t)5;
    CHECK_IS(ipc_configure_failover(name, &config), IPC_EINVAL);
    config.strategy = FAILOVER_PRIORITY;
    config.replica_count = 1;
    CHECK_IS(ipc_configure_failover(name, &config), IPC_EINVAL);
    config.replicas = order;
    CHECK_IS(ipc_configure_failover(name, &config), IPC_EINVAL);
    config.primary = instance;
    CHECK_IS(ipc_configure_failover(name, &config), IPC_EINVAL);
    config.replica_count = UINT32_MAX;
    CHECK_IS(ipc_configure_failover(name, &config), IPC_EINVAL);
    config.replica_count = 0;
    config.health_check.failure_threshold = 101;
    CHECK_IS(ipc_configure_failover(name, &config), IPC_EINVAL);
    config.health_check.failure_threshold = 0;
    config.health_check.interval_ms = 60001;
    CHECK_IS(ipc_configure_failover(name, &config), IPC_EINVAL);
    config.health_check.interval_ms = 0;
    config.primary = 4000000000u;
    CHECK_IS(ipc_configure_failover(name, &config), IPC_ENOENT);
    config.primary = 0;
    CHECK_IS(ipc_configure_failover(4000000000u, &config), IPC_ENOENT);

    memset(&info, 7, sizeof info);
    untouched = info;
    CHECK_IS(ipc_detect_service_failure(name, NULL), IPC_EINVAL);
    CHECK_IS(ipc_detect_service_failure(4000000000u, &info), IPC_ENOENT);
    CHECK_IS(ipc_detect_service_failure(0, &info), IPC_ENOENT);
    CHECK_IS(memcmp(&info, &untouched, sizeof info), 0);

    CHECK_IS(ipc_trigger_failover(4000000000u, 0), IPC_ENOENT);
    CHECK_IS(ipc_trigger_failover(name, 4000000000u), IPC_ENOENT);
}

int main(void) {
    service_id_t name, ids[3];
    failover_config_t config;
    pid_t pids[3];
    int at;
    CHECK_IS(pipe(tell), 0);
    for (at = 0; at < 3; at++) pids[at] = start(&ids[at]);
    OK(ipc_init(NULL));
    OK(ipc_wake_promptly());
    name = find("failover");
    CHECK_IS(serving(name), pids[0]);
    is_refused(name, ids[0]);

    /* The third goes before the others, and takes the name in order. */
    memset(&config, 0, sizeof config);
    config.primary = ids[2];
    config.replicas = &ids[0];
    config.replica_count = 2;
    config.strategy = FAILOVER_PRIORITY;
    /* Under Valgrind who is well is slow to say so. */
    config.health_check.interval_ms = 300;
    config.health_check.timeout_ms = 1000;
    OK(ipc_configure_failover(name, &config));
    until_serving(name, pids[2]);

    /* By hand, the first. */
    config.strategy = FAILOVER_MANUAL;
    config.primary = 0;
    config.replicas = NULL;
    config.replica_count = 0;
    OK(ipc_configure_failover(name, &config));
    OK(ipc_trigger_failover(name, ids[0]));
    until_serving(name, pids[0]);
    CHECK_IS(ipc_trigger_failover(ids[1], ids[0]), IPC_ENOENT);

    /* What runs is well; what is stopped hangs; what is dead has crashed. */
    CHECK_IS(failure_of(name, ids[0]), FAILURE_NONE);
    CHECK_IS(failure_of(ids[1], ids[1]), FAILURE_NONE);
    CHECK_IS(kill(pids[1], SIGSTOP), 0);
    while (failure_of(ids[1], ids[1]) != FAILURE_HUNG) rest();
    CHECK_IS(kill(pids[1], SIGKILL), 0);
    CHECK_IS(waitpid(pids[1], NULL, 0), pids[1]);
    while (failure_of(ids[1], ids[1]) != FAILURE_CRASHED) rest();

    /* A stop while somebody waits: the next answers, and the caller hears of nothing. */
    config.strategy = FAILOVER_HOT_STANDBY;
    OK(ipc_configure_failover(name, &config));
    CHECK_IS(kill(pids[0], SIGSTOP), 0);
    CHECK_IS(serving(name), pids[2]);
    CHECK_IS(kill(pids[0], SIGKILL), 0);
    CHECK_IS(kill(pids[2], SIGKILL), 0);
    OK(ipc_shutdown());
    CHECK_IS(ipc_configure_failover(name, &config), IPC_ENOTINIT);
    CHECK_IS(ipc_trigger_failover(name, 0), IPC_ENOTINIT);
    return 0;
}
