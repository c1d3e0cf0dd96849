/*
 * master_key.c
 *		Find the master key, keep it out of sight, and let it go.
 *
 * Three sources, in this order: the output of mlint.master_key_command, the
 * content of mlint.master_key_file, and "mlint_master.key" in the data
 * directory. Only the last is ever made by us, and only while the database has
 * no check value: a key made later could open nothing, and would turn a lost
 * file, which can be put back, into secrets under two keys. Making it holds a
 * lock across all databases, so that sessions that store their first secrets
 * at the same moment agree on one key.
 *
 * The command is started with posix_spawn() in a process group of its own,
 * and its output awaited on the latch: a command that hangs ends with the
 * statement that needed the key, or after half a minute. (OpenPipeStream()
 * would not do. Closing its stream waits for the command, for ever if need
 * be.)
 *
 * A source may give several keys, one a line: the first is the one to seal with
 * from the next rotation on, any of them opens. So the keys before it stay
 * where they are until nothing needs them: a table, a standby, a backup.
 *
 * A process that has used the keys keeps them, on memory that is never swapped
 * out nor dumped as far as the system allows, until a setting changes or it
 * exits.
 */
#include "postgres.h"

#include <ctype.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/compat.h"
#include "common/errors.h"
#include "common/injection.h"
#include "miscadmin.h"
#include "secrets/master_key.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "utils/guc.h"
#include "utils/timestamp.h"

#define DEFAULT_FILE		"mlint_master.key"	/* in the data directory */
#define DEFAULT_SOURCE		"\"" DEFAULT_FILE "\" in the data directory"
#define COMMAND_SOURCE		"mlint.master_key_command"
#define FILE_SOURCE			"mlint.master_key_file"
#define COMMAND_TIMEOUT_MS	30000

/* A key as text is 64 bytes, and a source gives a few with comments. */
#define KEY_TEXT_BYTES		4096
#define MAX_KEYS			16

/* Domain separation of what is sealed under the master key. */
#define CHECK_AAD			"mlint master key check"

/* Tells our lock from those of pg_advisory_lock(), which name a database. */
#define KEY_LOCK_ID			0x6d6c6b79

typedef struct KeyCommand
{
	pid_t		pid;			/* 0: none, or reaped */
	int			fd;				/* its output; -1: closed */
	char text[	KEY_TEXT_BYTES];
	size_t		len;
} KeyCommand;

/* What a source gives. The first is the newest. */
typedef struct KeyRing
{
	int			n;
	uint8		keys[MAX_KEYS][CRYPTO_KEY_BYTES];
	/* The check value that a key was last seen to match, if any. */
	bool		matched[MAX_KEYS];
	uint8		checks[MAX_KEYS][MASTER_KEY_CHECK_BYTES];
} KeyRing;

extern char **environ;

static char *master_key_command;
static char *master_key_file;
static KeyRing *cached = NULL;

/* Settings have changed: the next use looks at the sources again. */
static void
master_key_setting_changed(const char *newval, void *extra)
{
	if (cached)
		crypto_wipe(cached, sizeof(*cached));
}

static void
master_key_at_exit(int code, Datum arg)
{
	crypto_wipe(cached, sizeof(*cached));
}

void
master_key_define_settings(void)
{
	DefineCustomStringVariable(COMMAND_SOURCE,
							   "Shell command that prints the master key of the secrets.",
							   "It prints 32 bytes as 64 hexadecimal digits or as base64, within 30 seconds; older keys may follow, one a line. Set it to fetch the key from a key management service or a hardware module, so that no backup of the data directory contains it.",
							   &master_key_command, "",
							   PGC_SIGHUP, GUC_SUPERUSER_ONLY,
							   NULL, master_key_setting_changed, NULL);
	DefineCustomStringVariable(FILE_SOURCE,
							   "File that contains the master key of the secrets.",
							   "It contains 32 bytes as 64 hexadecimal digits or as base64; older keys may follow, one a line. Empty: \"" DEFAULT_FILE "\" in the data directory, made at first use. Set it to keep the key apart from the data directory and its backups.",
							   &master_key_file, "",
							   PGC_SIGHUP, GUC_SUPERUSER_ONLY,
							   NULL, master_key_setting_changed, NULL);
}

/* Read 32 bytes written as hex or base64, with white space around. */
static bool
key_parse(const char *text, size_t len, uint8 *key)
{
	uint8		decoded[CRYPTO_KEY_BYTES + 1];
	bool		ok;

	while (len > 0 && isspace((unsigned char) text[len - 1]))
		len--;
	while (len > 0 && isspace((unsigned char) text[0]))
		text	  ++,
					len--;

	if (len == 2 * CRYPTO_KEY_BYTES)
	{
		for (int i = 0; i < CRYPTO_KEY_BYTES; i++)
		{
			int			byte = 0;

			for (int j = 0; j < 2; j++)
			{
				char		c = text[2 * i + j];

				if (c >= '0' && c <= '9')
					byte = byte << 4 | (c - '0');
				else if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f')
					byte = byte << 4 | ((c | 0x20) - 'a' + 10);
				else
					return false;
			}
			key[i] = byte;
		}
		return true;
	}

	if (len != CRYPTO_BASE64_BYTES(CRYPTO_KEY_BYTES) - 1)
		return false;
	ok = crypto_unbase64(text, len, decoded) == CRYPTO_KEY_BYTES;
	if (ok)
		memcpy(key, decoded, CRYPTO_KEY_BYTES);
	crypto_wipe(decoded, sizeof(decoded));
	return ok;
}

/*
 * Read the keys of a source, one a line; empty lines and those that begin with
 * "#" count for nothing. False for anything else, and for no key at all.
 */
static bool
keys_parse(const char *from, size_t len, KeyRing *ring)
{
	const char *end = from + len;

	ring->n = 0;
	while (from < end)
	{
		const char *eol = memchr(from, '\n', end - from);
		size_t		n = (eol ? eol : end) - from;
		size_t		blank = 0;

		while (blank < n && isspace((unsigned char) from[blank]))
			blank++;
		if (blank < n && from[blank] != '#')
		{
			if (ring->n == MAX_KEYS ||
				!key_parse(from, n, ring->keys[ring->n]))
				return false;
			ring->n++;
		}
		from += n + 1;
	}
	return ring->n > 0;
}

/* Raise what is wrong with a text that is no key. */
static void
pg_attribute_noreturn()
key_malformed(const char *source)
{
	ereport(ERROR,
			(errcode(ERRCODE_MLINT_MASTER_KEY),
			 errmsg("what %s gives is not a master key", source),
			 errdetail("A master key is 32 bytes, written as 64 hexadecimal digits or as 44 characters of base64; the newest comes first, up to %d older ones follow, each on a line of its own.",
					   MAX_KEYS - 1),
			 errhint("If no secret is stored yet, make one with: openssl rand -hex 32")));
}

/* Start the command: its output in a pipe, its errors in the server's log. */
static void
key_command_start(KeyCommand *command)
{
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attr;
	sigset_t	none;
	sigset_t	pipe_signal;
	char	   *argv[] = {"sh", "-c", master_key_command, NULL};
	int			pipe_fds[2];
	pid_t		pid;
	int			failure;

	if (pipe(pipe_fds) < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not create a pipe: %m")));
	fcntl(pipe_fds[0], F_SETFD, FD_CLOEXEC);
	fcntl(pipe_fds[0], F_SETFL, O_NONBLOCK);
	fcntl(pipe_fds[1], F_SETFD, FD_CLOEXEC);

	sigemptyset(&none);
	sigemptyset(&pipe_signal);
	sigaddset(&pipe_signal, SIGPIPE);
	posix_spawnattr_init(&attr);
	posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETPGROUP |
							 POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
	posix_spawnattr_setpgroup(&attr, 0);
	posix_spawnattr_setsigmask(&attr, &none);
	posix_spawnattr_setsigdefault(&attr, &pipe_signal);
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null",
									 O_RDONLY, 0);
	posix_spawn_file_actions_adddup2(&actions, pipe_fds[1], STDOUT_FILENO);
	failure = posix_spawn(&pid, "/bin/sh", &actions, &attr, argv,
						  environ);
	posix_spawn_file_actions_destroy(&actions);
	posix_spawnattr_destroy(&attr);

	close(pipe_fds[1]);
	if (failure != 0)
	{
		close(pipe_fds[0]);
		errno = failure;
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_MASTER_KEY),
				 errmsg("could not start %s: %m", COMMAND_SOURCE)));
	}
	command->pid = pid;
	command->fd = pipe_fds[0];
	ReserveExternalFD();
}

/* Whatever happened: nothing of the command stays. Runs on FATAL, too. */
static void
key_command_end(int code, Datum arg)
{
	KeyCommand *command = (KeyCommand *) DatumGetPointer(arg);

	if (command->fd >= 0)
	{
		close(command->fd);
		ReleaseExternalFD();
	}
	command->fd = -1;
	if (command->pid > 0)
	{
		kill(-command->pid, SIGKILL);
		while (waitpid(command->pid, NULL, 0) < 0 && errno == EINTR)
			;
	}
	command->pid = 0;
	crypto_wipe(command->text, sizeof(command->text));
}

/* Wait until there is output (fd), or a moment (no fd), or it is too late. */
static void
key_command_wait(int fd, TimestampTz deadline)
{
	static uint32 wait_event = 0;
	long		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
													   deadline);

	CHECK_FOR_INTERRUPTS();
	if (left <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_MASTER_KEY),
				 errmsg("%s took longer than %d seconds",
						COMMAND_SOURCE, COMMAND_TIMEOUT_MS / 1000),
				 errhint("Run the command by hand, as the server's operating-system user, to see what it waits for.")));
	if (wait_event == 0)
		wait_event = mlint_wait_event("MlintMasterKeyCommand");
	if (fd >= 0)
		(void) WaitLatchOrSocket(MyLatch,
								 WL_LATCH_SET | WL_SOCKET_READABLE |
								 WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
								 fd, left, wait_event);
	else
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 Min(left, 5), wait_event);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
}

/* Read all the output, then wait for the end. Returns the exit status. */
static int
key_command_finish(KeyCommand *command)
{
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
													   COMMAND_TIMEOUT_MS);
	pid_t		ended;
	int			status;

	for (;;)
	{
		ssize_t		n = read(command->fd, command->text +command->len,
							 sizeof(command->text) - command->len);

		if (n == 0)
			break;
		if (n > 0)
		{
			command->len += n;
			if (command->len == sizeof(command->text))
				key_malformed(COMMAND_SOURCE);
		}
		else if (errno == EAGAIN || errno == EWOULDBLOCK)
			key_command_wait(command->fd, deadline);
		else if (errno != EINTR)
			ereport(ERROR,
					(errcode(ERRCODE_MLINT_MASTER_KEY),
					 errmsg("could not read from %s: %m", COMMAND_SOURCE)));
	}

	while ((ended = waitpid(command->pid, &status, WNOHANG)) != command->pid)
	{
		if (ended < 0 && errno != EINTR)
			ereport(ERROR,
					(errcode(ERRCODE_MLINT_MASTER_KEY),
					 errmsg("could not learn how %s ended: %m",
							COMMAND_SOURCE)));
		key_command_wait(-1, deadline);
	}
	command->pid = 0;
	return status;
}

/* The keys that mlint.master_key_command prints. */
static void
key_from_command(KeyRing *ring)
{
	KeyCommand	command = {.pid = 0,.fd = -1};
	int			status;
	bool		ok;

	PG_ENSURE_ERROR_CLEANUP(key_command_end, PointerGetDatum(&command));
	{
		key_command_start(&command);
		status = key_command_finish(&command);
		ok = status == 0 && keys_parse(command.text, command.len, ring);
	}
	PG_END_ENSURE_ERROR_CLEANUP(key_command_end, PointerGetDatum(&command));
	key_command_end(0, PointerGetDatum(&command));

	if (status != 0)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_MASTER_KEY),
				 errmsg("%s failed", COMMAND_SOURCE),
				 errdetail("%s.", wait_result_to_str(status)),
				 errhint("What it wrote to its standard error is in the server's log. No secret is lost: they open again when the command works.")));
	if (!ok)
		key_malformed(COMMAND_SOURCE);
}

/*
 * The keys in a file. False when there is no such file. As for the server's
 * TLS key, nobody else may be able to read it; root may own it and grant it to
 * a group.
 */
static bool
key_from_file(const char *path, const char *source, KeyRing *ring)
{
	struct stat st;
	char text[	KEY_TEXT_BYTES];
	ssize_t		len;
	bool		ok;
	int			fd;

	/* O_NONBLOCK, so that a FIFO cannot hold us. */
	fd = OpenTransientFile(path, O_RDONLY | O_NONBLOCK | PG_BINARY);
	if (fd < 0 && errno == ENOENT)
		return false;
	if (fd < 0 || fstat(fd, &st) < 0)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_MASTER_KEY),
				 errmsg("could not read the master key from %s: %m", source),
				 errdetail_log("The file is \"%s\".", path),
				 errhint("The file must be readable by the server's operating-system user.")));
	if (!S_ISREG(st.st_mode))
		key_malformed(source);
	if ((st.st_uid != geteuid() && st.st_uid != 0) ||
		(st.st_mode & (st.st_uid == 0 ?
					   S_IWGRP | S_IXGRP | S_IRWXO :
					   S_IRWXG | S_IRWXO)) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_MASTER_KEY),
				 errmsg("the file of the master key from %s can be read by others",
						source),
				 errdetail_log("The file is \"%s\".", path),
				 errhint("It must have permissions u=rw (0600) or less if owned by the server's operating-system user, or u=rw,g=r (0640) or less if owned by root.")));

	len = read(fd, text, sizeof(text));
	if (len < 0)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_MASTER_KEY),
				 errmsg("could not read the master key from %s: %m", source),
				 errdetail_log("The file is \"%s\".", path)));
	CloseTransientFile(fd);
	ok = len < (ssize_t) sizeof(text) && keys_parse(text, len, ring);
	crypto_wipe(text, sizeof(text));
	if (!ok)
		key_malformed(source);
	return true;
}

/*
 * Put a new key before those that there are, and take the place of the default
 * file in one step. The caller holds the lock.
 */
static void
key_file_write(const KeyRing *older)
{
	static const char temporary[] = DEFAULT_FILE ".tmp";
	uint8		key[CRYPTO_KEY_BYTES];
	char text[	MAX_KEYS * (2 * CRYPTO_KEY_BYTES + 1) + 1];
	size_t		len;
	bool		ok;
	int			fd;

	crypto_random(key, sizeof(key));
	crypto_hex(key, sizeof(key), text);
	len = 2 * CRYPTO_KEY_BYTES;
	text[		len++] = '\n';

	for (int i = 0; i < older->n; i++)
	{
		crypto_hex(older->keys[i], CRYPTO_KEY_BYTES, text +len);
		len += 2 * CRYPTO_KEY_BYTES;
		text[		len++] = '\n';
	}

	/* A server that crashed in here may have left one. */
	unlink(temporary);
	fd = OpenTransientFilePerm(temporary, O_CREAT | O_EXCL | O_WRONLY |
							   PG_BINARY, S_IRUSR | S_IWUSR);
	errno = fd < 0 ? errno : 0;
	ok = fd >= 0 && write(fd, text, len) == (ssize_t) len;
	if (!ok && errno == 0)
		errno = ENOSPC;
	crypto_wipe(key, sizeof(key));
	crypto_wipe(text, sizeof(text));
	if (!ok || CloseTransientFile(fd) != 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not write file \"%s\": %m", temporary)));

	INJECTION("master-key-before-rename");
	/* Syncs the file before, and the directory after. */
	durable_rename(temporary, DEFAULT_FILE, ERROR);
	INJECTION("master-key-after-rename");
	ereport(LOG,
			(errmsg("mlint made a new master key for secrets: %s",
					DEFAULT_SOURCE),
			 errhint("Keep a copy apart from the database's backups: without it the secrets in them do not open.")));
}

/* The lock that whoever writes the default file holds, in any database. */
static void
key_file_lock(LOCKTAG *tag)
{
	SET_LOCKTAG_ADVISORY(*tag, InvalidOid, KEY_LOCK_ID, 0, 0);
	(void) LockAcquire(tag, ExclusiveLock, false, false);
}

/* The default file, which is made here if it is not there and may be. */
static void
key_from_default_file(bool may_make, KeyRing *ring)
{
	LOCKTAG		tag;

	if (key_from_file(DEFAULT_FILE, DEFAULT_SOURCE, ring))
		return;
	if (!may_make)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_MASTER_KEY),
				 errmsg("the master key is missing"),
				 errdetail("Secrets are stored in this database, but there is no %s, and neither %s nor %s is set.",
						   DEFAULT_SOURCE, COMMAND_SOURCE, FILE_SOURCE),
				 errhint("Put the file back from a copy, or set %s or %s to where the key is now. No secret is lost: they open again with their key.",
						 COMMAND_SOURCE, FILE_SOURCE)));

	key_file_lock(&tag);
	if (!key_from_file(DEFAULT_FILE, DEFAULT_SOURCE, ring))
	{
		ring->n = 0;
		key_file_write(ring);
		if (!key_from_file(DEFAULT_FILE, DEFAULT_SOURCE, ring))
			elog(ERROR, "the master key just written is gone");
	}
	(void) LockRelease(&tag, ExclusiveLock, false);
}

const char *
master_key_source(void)
{
	return master_key_command[0] != '\0' ? COMMAND_SOURCE :
		master_key_file[0] != '\0' ? FILE_SOURCE : DEFAULT_SOURCE;
}

bool
master_key_in_data_directory(void)
{
	char		path[MAXPGPATH];

	if (master_key_command[0] != '\0')
		return false;
	if (master_key_file[0] == '\0' || !is_absolute_path(master_key_file))
		return true;
	strlcpy(path, master_key_file, sizeof(path));
	canonicalize_path(path);
	return path_is_prefix_of_path(DataDir, path);
}

/* Read the keys from the first source that is set. */
static void
key_load(bool may_make, KeyRing *ring)
{
	if (master_key_command[0] != '\0')
		key_from_command(ring);
	else if (master_key_file[0] == '\0')
		key_from_default_file(may_make, ring);
	else if (!key_from_file(master_key_file, FILE_SOURCE, ring))
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_MASTER_KEY),
				 errmsg("the file of %s does not exist", FILE_SOURCE),
				 errdetail_log("The file is \"%s\".", master_key_file),
				 errhint("Put the file there, or correct the setting. No secret is lost: they open again with their key.")));
}

/* Get the pages that the keys stay on. */
static void
cache_prepare(void)
{
	void	   *pages;

	if (cached)
		return;
	pages = mmap(NULL, sizeof(KeyRing), PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (pages == MAP_FAILED)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory")));
	(void) mlock(pages, sizeof(KeyRing));
#ifdef MADV_DONTDUMP
	(void) madvise(pages, sizeof(KeyRing), MADV_DONTDUMP);
#endif
	cached = pages;
	on_proc_exit(master_key_at_exit, 0);
}

/* Read the source again. Until all is read and in order there is no key. */
static void
keys_read(bool may_make)
{
	cache_prepare();
	crypto_wipe(cached, sizeof(*cached));
	PG_TRY();
	{
		key_load(may_make, cached);
	}
	PG_CATCH();
	{
		crypto_wipe(cached, sizeof(*cached));
		PG_RE_THROW();
	}
	PG_END_TRY();
}

/* Is this the key that the check value was made with? */
static bool
key_matches(const uint8 *key, const uint8 *check)
{
	uint8		nothing[1];

	return crypto_open(key, CHECK_AAD, strlen(CHECK_AAD), check,
					   MASTER_KEY_CHECK_BYTES, nothing);
}

/* The key of a check value among those at hand, or NULL. */
static const uint8 *
key_find(const uint8 *check)
{
	if (cached == NULL)
		return NULL;
	for (int i = 0; i < cached->n; i++)
	{
		if (cached->matched[i] &&
			memcmp(cached->checks[i], check, MASTER_KEY_CHECK_BYTES) == 0)
			return cached->keys[i];
	}
	for (int i = 0; i < cached->n; i++)
	{
		if (!key_matches(cached->keys[i], check))
			continue;
		memcpy(cached->checks[i], check, MASTER_KEY_CHECK_BYTES);
		cached->matched[i] = true;
		return cached->keys[i];
	}
	return NULL;
}

void
master_key_make_check(const uint8 *key, uint8 check[MASTER_KEY_CHECK_BYTES])
{
	crypto_seal(key, CHECK_AAD, strlen(CHECK_AAD), "", 0, check);
}

const uint8 *
master_key_get(const uint8 *check)
{
	const uint8 *key = check ? key_find(check) : NULL;

	if (key)
		return key;
	keys_read(check == NULL);
	key = check ? key_find(check) : cached->keys[0];
	if (key == NULL)
	{
		crypto_wipe(cached, sizeof(*cached));
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_MASTER_KEY),
				 errmsg("this is not the master key that the database's secrets are sealed with"),
				 errdetail("It comes from %s.", master_key_source()),
				 errhint("Give the key that was in use when the secrets were stored, by %s, by %s or as %s. No secret is lost: they open again with their key.",
						 COMMAND_SOURCE, FILE_SOURCE, DEFAULT_SOURCE)));
	}
	return key;
}

bool
master_key_held(const uint8 *check)
{
	return key_find(check) != NULL;
}

bool
master_key_available(const uint8 *check)
{
	if (key_find(check))
		return true;
	keys_read(false);
	return key_find(check) != NULL;
}

/*
 * The default file gets a new key here. What the administrator keeps he
 * changes himself: then the new key is to be there already.
 */
const uint8 *
master_key_next(const uint8 *const *checks, int n)
{
	LOCKTAG		tag;
	bool		ours = master_key_command[0] == '\0' &&
	master_key_file[0] == '\0';
	bool		fresh = true;

	if (ours)
		key_file_lock(&tag);
	keys_read(false);
	for (int i = 0; i < n; i++)
		fresh &= !key_matches(cached->keys[0], checks[i]);
	if (!fresh && !ours)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_MASTER_KEY),
				 errmsg("%s gives no new master key", master_key_source()),
				 errdetail("The first key that it gives has been in use in this database."),
				 errhint("Let it give the new key on the first line and the older ones on those below, and call mlint.master_key_rotate() again. Make a key with: openssl rand -hex 32")));
	if (!fresh)
	{
		/* No version is sealed with a key that is not among the checks. */
		if (cached->n == MAX_KEYS)
			ereport(ERROR,
					(errcode(ERRCODE_MLINT_MASTER_KEY),
					 errmsg("%s holds %d keys already", DEFAULT_SOURCE,
							MAX_KEYS),
					 errhint("Remove the last lines of the file, of keys that the view mlint.master_key calls retired in each database and that no backup needs.")));
		key_file_write(cached);
		keys_read(false);
	}
	if (ours)
		(void) LockRelease(&tag, ExclusiveLock, false);
	return cached->keys[0];
}
