/*
 * injection.c
 *		Die, fail or stop where a test asks for it; see injection.h.
 */
#include "postgres.h"

#include "common/injection.h"

#ifdef MLINT_INJECTION_POINTS

#include <fcntl.h>
#ifdef MLINT_COVERAGE
#include <gcov.h>
#endif
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include "miscadmin.h"
#include "storage/fd.h"
#include "storage/latch.h"
#include "utils/wait_event.h"

#define LOOK_MS		20

/* Stop until the file is removed. */
static void
wait_for_removal(const char *path)
{
	struct stat st;

	while (stat(path, &st) == 0)
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT |
						 WL_EXIT_ON_PM_DEATH, LOOK_MS, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

void
injection_run(const char *name)
{
	char		path[MAXPGPATH];
	char		action[16] = "";
	int			fd;

	snprintf(path, sizeof(path), "%s/mlint_injection.%s", DataDir, name);
	fd = OpenTransientFile(path, O_RDONLY | PG_BINARY);
	if (fd < 0)
		return;
	(void) !read(fd, action, sizeof(action) - 1);
	CloseTransientFile(fd);

	if (strncmp(action, "wait", 4) == 0)
	{
		wait_for_removal(path);
		return;
	}
	(void) unlink(path);
	if (strncmp(action, "kill", 4) == 0)
	{
#ifdef MLINT_COVERAGE
		__gcov_dump();
#endif
		kill(MyProcPid, SIGKILL);
	}
	ereport(ERROR,
			(errcode(ERRCODE_INTERNAL_ERROR),
			 errmsg("injected error \"%s\"", name)));
}

#endif
