/* ipcd and its directory: missing, not ours, read-only, gone, back, and there twice.
 *
 * IPCD names the program. */
#include "check.h"

#include <fcntl.h>
#include <sys/stat.h>

static char directory[] = "/tmp/ipc-runtime-XXXXXX";
static char below[64];

/* Starts ipcd, and waits until it says that it is ready. Returns 0 if it ends instead. */
static pid_t start(void) {
    int lines[2];
    char text[512];
    ssize_t got, length = 0;
    pid_t pid;
    CHECK_IS(pipe(lines), 0);
    pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        dup2(lines[1], 2);
        close(lines[0]);
        close(lines[1]);
        execl(getenv("IPCD"), "ipcd", "--runtime-dir", below, (char *)NULL);
        _exit(127);
    }
    close(lines[1]);
    for (;;) {
        got = read(lines[0], text + length, sizeof text - 1 - (size_t)length);
        CHECK(got >= 0);
        length += got;
        text[length] = 0;
        if (got == 0 || strstr(text, "ipcd: ready") != NULL) break;
    }
    close(lines[0]);
    if (got > 0) return pid;
    CHECK(strstr(text, "already") != NULL);
    CHECK_IS(waitpid(pid, NULL, 0), pid);
    return 0;
}

static void end(pid_t ipcd, int signal) {
    int status;
    CHECK_IS(kill(ipcd, signal), 0);
    CHECK_IS(waitpid(ipcd, &status, 0), ipcd);
}

/* ipc_init fails with one of these, prints nothing, and leaves nothing behind. */
static void init_fails(uint32_t flags, int wanted, int or_else) {
    int caught[2], saved, status, i;
    char byte;
    ipc_config_t config = IPC_CONFIG_INIT;
    config.flags = flags;
    CHECK_IS(pipe(caught), 0);
    fflush(stderr);
    saved = dup(2);
    dup2(caught[1], 2);
    for (i = 0; i < 3; i++) status = ipc_init(&config);
    dup2(saved, 2);
    close(saved);
    close(caught[1]);
    if (status != wanted && status != or_else) CHECK_IS(status, wanted);
    CHECK_IS(read(caught[0], &byte, 1), 0);
    close(caught[0]);
    CHECK_IS(ipc_poll(0), IPC_ENOTINIT);
    CHECK(strlen(ipc_strerror(status)) > 20);
}

static int open_descriptors(void) {
    int fd, count = 0;
    for (fd = 0; fd < 256; fd++) count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

static void bad_directories(void) {
    int before = open_descriptors();
    FILE *file;
    /* Missing. */
    init_fails(0, IPC_ENORUNTIME, 0);
    CHECK(strstr(ipc_strerror(IPC_ENORUNTIME), "ipcd") != NULL);
    /* A file. */
    file = fopen(below, "w");
    CHECK(file != NULL);
    fclose(file);
    init_fails(0, IPC_ENORUNTIME, IPC_EACCES);
    init_fails(IPC_EMBEDDED, IPC_EACCES, 0);
    CHECK(ipc_last_os_error() == ENOTDIR || ipc_last_os_error() == EEXIST);
    CHECK_IS(unlink(below), 0);
    /* Others may write in it. */
    CHECK_IS(mkdir(below, 0700), 0);
    init_fails(0, IPC_ENORUNTIME, 0);
    CHECK_IS(chmod(below, 0777), 0);
    init_fails(0, IPC_EACCES, IPC_ENORUNTIME);
    init_fails(IPC_EMBEDDED, IPC_EACCES, 0);
    if (geteuid() == 0) {
        /* Another user's. */
        CHECK_IS(chmod(below, 0700), 0);
        CHECK_IS(chown(below, 12345, 12345), 0);
        init_fails(0, IPC_EACCES, IPC_ENORUNTIME);
        init_fails(IPC_EMBEDDED, IPC_EACCES, 0);
    } else {
        /* Read-only; root may write all the same. */
        CHECK_IS(chmod(below, 0500), 0);
        init_fails(IPC_EMBEDDED, IPC_EACCES, 0);
        CHECK_IS(chmod(below, 0000), 0);
        init_fails(0, IPC_EACCES, 0);
        CHECK_IS(chmod(below, 0700), 0);
    }
    CHECK_IS(rmdir(below), 0);
    CHECK_IS(open_descriptors(), before);
}

static void serve_runtime(void) { serve("runtime", echo); }

static int wait_until_served(const char *name, service_id_t *id) {
    int status;
    do {
        status = ipc_wait_service(name, 200, id);
    } while (status == IPC_ENORUNTIME || status == IPC_ETIMEDOUT || status == IPC_ECANCELED);
    return status;
}

int main(void) {
    pid_t ipcd, server;
    service_id_t service, again = 0, own = 0, other = 0;
    int before;
    CHECK(getenv("IPCD") != NULL);
    CHECK(mkdtemp(directory) != NULL);
    snprintf(below, sizeof below, "%s/run", directory);
    CHECK_IS(setenv("IPC_RUNTIME_DIR", below, 1), 0);
    bad_directories();

    ipcd = start();
    CHECK(ipcd != 0);
    /* A second one is refused, and disturbs nobody. */
    CHECK_IS(start(), 0);

    server = spawn(serve_runtime);
    before = open_descriptors();
    OK(ipc_init(NULL));
    service = find("runtime");
    ask(service, "before", "before");
    OK(ipc_register_service("runtime-own", &own));

    /* Gone: what is open goes on, the rest says so. */
    end(ipcd, SIGKILL);
    ask(service, "without", "without");
    CHECK_IS(ipc_discover_service("runtime", &again), IPC_ENORUNTIME);
    CHECK_IS(ipc_register_service("runtime-other", &other), IPC_ENORUNTIME);
    CHECK(again == 0 && other == 0);
    ask(service, "without", "without");
    CHECK_IS(ipc_poll(1), 0);

    /* Back: everybody returns by themselves, under their former ids. */
    ipcd = start();
    CHECK(ipcd != 0);
    OK(wait_until_served("runtime", &again));
    CHECK_IS(again, service);
    ask(service, "after", "after");
    OK(wait_until_served("runtime-own", &again));
    OK(ipc_register_service("runtime-other", &other));
    CHECK(other != own);
    OK(ipc_unregister_service(own));
    CHECK_IS(ipc_discover_service("runtime-own", &again), IPC_ENOENT);

    /* Stopped in order, with everything still registered: nothing hangs. */
    end(ipcd, SIGTERM);
    ask(service, "again without", "again without");
    OK(ipc_shutdown());
    CHECK_IS(open_descriptors(), before);
    CHECK_IS(ipc_init(NULL), IPC_ENORUNTIME);
    dismiss(server);
    snprintf(below, sizeof below, "rm -r %s", directory);
    CHECK_IS(system(below), 0);
    return 0;
}
