/* Steps the wall clock of one process by as many seconds as the file $CLOCK_STEP says, and no
 * other clock: for LD_PRELOAD. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = (int)syscall(SYS_clock_gettime, clock, now);
    const char *path = getenv("CLOCK_STEP");
    if (result != 0 || clock != CLOCK_REALTIME || path == NULL) return result;
    char text[32] = {0};
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return result;
    if (read(file, text, sizeof text - 1) > 0) now->tv_sec += strtoll(text, NULL, 10);
    close(file);
    return result;
}
