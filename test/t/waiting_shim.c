/*
 * waiting_shim.c
 *		Waiting that libfaketime does not see: preloaded in front of it.
 *
 * While a process waits, libfaketime has it see the real time. PostgreSQL 15
 * starts its background workers in a signal handler of the postmaster, which is
 * waiting then: they would see the real time for all their life. So waiting
 * goes to the kernel directly; it is for lengths of time, and these are not
 * faked.
 */
#define _GNU_SOURCE
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int
select(int n, fd_set *r, fd_set *w, fd_set *x, struct timeval *timeout)
{
	struct timespec ts;
	int			result;

	if (timeout == NULL)
		return (int) syscall(SYS_pselect6, n, r, w, x, NULL, NULL);
	ts.tv_sec = timeout->tv_sec;
	ts.tv_nsec = timeout->tv_usec * 1000;
	result = (int) syscall(SYS_pselect6, n, r, w, x, &ts, NULL);
	timeout->tv_sec = ts.tv_sec;
	timeout->tv_usec = ts.tv_nsec / 1000;
	return result;
}

int
poll(struct pollfd *fds, nfds_t n, int timeout)
{
	struct timespec ts = {timeout / 1000, timeout % 1000 * 1000000L};

	return (int) syscall(SYS_ppoll, fds, n, timeout < 0 ? NULL : &ts, NULL, (size_t) 0);
}

int
epoll_wait(int fd, struct epoll_event *events, int n, int timeout)
{
	return (int) syscall(SYS_epoll_pwait, fd, events, n, timeout, NULL, (size_t) 0);
}
