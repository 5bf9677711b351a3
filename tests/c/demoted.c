/* Names that change hands in order: who lets go closes its store before the next opens it. */
#include "check.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/file.h>

/* What a replica tells: its instance at first, and then each name that it has let go of. */
typedef struct {
    service_id_t instance;
    uint64_t epoch;
    pid_t pid;
} word_t;

static int tell[2];
static char store[64];
static int lock = -1;

/* What it answers. */
typedef struct {
    uint64_t epoch;
    pid_t pid;
} answer_t;

/* Opens the store, which one process at a time may have open. */
static void handle(const ipc_message_t *msg, void *user_data) {
    answer_t answer;
    (void)user_data;
    memset(&answer, 0, sizeof answer);
    answer.epoch = msg->routing.epoch;
    answer.pid = getpid();
    if (lock < 0) {
        lock = open(store, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        CHECK(lock >= 0);
        if (flock(lock, LOCK_EX | LOCK_NB) != 0) {
            close(lock);
            lock = -1;
            OK(ipc_reply_error(msg, IPC_EUSER - 1));
            return;
        }
    }
    if (msg->payload_size > 0) OK(ipc_on_demoted(NULL, NULL));
    OK(ipc_reply(msg, &answer, sizeof answer));
}

static void let_go(service_id_t instance, uint64_t epoch, void *user_data) {
    word_t word;
    CHECK(user_data == &lock);
    CHECK(lock >= 0);
    CHECK_IS(ipc_poll(0), IPC_EREENTRANT);
    close(lock);
    lock = -1;
    memset(&word, 0, sizeof word);
    word.instance = instance;
    word.epoch = epoch;
    word.pid = getpid();
    CHECK_IS(write(tell[1], &word, sizeof word), sizeof word);
}

static void replica(void) {
    word_t word;
    memset(&word, 0, sizeof word);
    CHECK_IS(ipc_on_demoted(let_go, &lock), IPC_ENOTINIT);
    OK(ipc_init(NULL));
    OK(ipc_receive_async(0, handle));
    /* The later one counts. */
    OK(ipc_on_demoted(let_go, NULL));
    OK(ipc_on_demoted(let_go, &lock));
    OK(ipc_register_service_ex("demoted", IPC_SERVICE_IDEMPOTENT, &word.instance));
    CHECK_IS(write(tell[1], &word, sizeof word), sizeof word);
    ipc_run();
}

static word_t heard(void) {
    word_t word;
    CHECK_IS(read(tell[0], &word, sizeof word), sizeof word);
    return word;
}

static answer_t asked(service_id_t name, const char *text) {
    answer_t answer;
    size_t size = 0;
    OK(ipc_call_into(name, text, strlen(text), &answer, sizeof answer, &size, SOON_MS));
    CHECK_IS(size, sizeof answer);
    return answer;
}

int main(void) {
    service_id_t name, ids[2];
    pid_t pids[2];
    answer_t before, after;
    struct pollfd silence;
    size_t size = 0;
    int at, turn;
    strcpy(store, "/tmp/ipc-demoted-XXXXXX");
    at = mkstemp(store);
    CHECK(at >= 0);
    close(at);
    CHECK_IS(pipe(tell), 0);
    for (at = 0; at < 2; at++) {
        pids[at] = spawn(replica);
        ids[at] = heard().instance;
    }
    OK(ipc_init(NULL));
    name = find("demoted");
    before = asked(name, "");
    CHECK_IS(before.pid, pids[0]);

    /* To and fro: each has closed the store when the other one opens it. */
    for (turn = 0; turn < 4; turn++) {
        int from = turn % 2, to = 1 - from;
        word_t word;
        OK(ipc_trigger_failover(name, ids[to]));
        after = asked(name, "");
        CHECK_IS(after.pid, pids[to]);
        word = heard();
        CHECK_IS(word.pid, pids[from]);
        CHECK_IS(word.instance, ids[from]);
        CHECK_IS(word.epoch, before.epoch);
        CHECK(after.epoch > before.epoch);
        before = after;
    }

    /* Who has taken its handler back is told nothing, and keeps the store. */
    CHECK_IS(asked(name, "forget").pid, pids[0]);
    OK(ipc_trigger_failover(name, ids[1]));
    CHECK_IS(ipc_call_into(name, "", 0, &after, sizeof after, &size, SOON_MS), IPC_EUSER - 1);
    silence.fd = tell[0];
    silence.events = POLLIN;
    CHECK_IS(poll(&silence, 1, 0), 0);

    OK(ipc_shutdown());
    for (at = 0; at < 2; at++) CHECK_IS(kill(pids[at], SIGKILL), 0);
    unlink(store);
    return 0;
}
