/*
 * file.c
 *		Secrets in files below a directory of the server, to be read only: what
 *		Docker and Kubernetes mount.
 *
 * Nothing outside the directory is ever opened. Kubernetes makes each file a
 * symbolic link to another one below the same directory, so links are
 * followed, as long as they stay there: openat2() with RESOLVE_BENEATH has the
 * kernel see to that. Where the kernel has no openat2(), or a sandbox forbids
 * it, the path is resolved first and compared; then somebody who can write to
 * the directory could win a race, and he could write the secrets anyway.
 */
#include "postgres.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/crypto.h"
#include "common/errors.h"
#include "secrets/kind.h"
#include "storage/fd.h"

#define DEPTH_MAX	8

typedef struct FileOptions
{
	BackendOptions common;
	char	   *directory;
	bool		trim;
} FileOptions;

static const Option file_options[] = {
	{"directory", OPTION_TEXT, offsetof(FileOptions, directory), NULL,
		0, 0, NULL, NULL, true,
	"absolute path of the directory with a file for each secret"},
	{"trim", OPTION_BOOL, offsetof(FileOptions, trim), "true",
		0, 0, NULL, NULL, false,
	"whether a line break at the end of a file is no part of the value"},
	{NULL}
};

static bool
file_check(const BackendOptions *options, const char *what)
{
	const FileOptions *o = (const FileOptions *) options;

	if (!is_absolute_path(o->directory))
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("option \"directory\" of %s must be an absolute path",
						what)));
	return true;
}

/* As open_beneath(), where the kernel does not help. */
static int
open_resolved(const char *directory, const char *name, int flags)
{
	char		root[PATH_MAX];
	char		path[PATH_MAX];
	char		joined[PATH_MAX];
	size_t		len;

	if (snprintf(joined, sizeof(joined), "%s/%s", directory, name) >=
		(int) sizeof(joined))
	{
		errno = ENAMETOOLONG;
		return -1;
	}
	if (realpath(directory, root) == NULL || realpath(joined, path) == NULL)
		return -1;
	len = strlen(root);
	if (strncmp(path, root, len) != 0 ||
		(path[len] != '/' && path[len] != '\0'))
	{
		errno = EXDEV;
		return -1;
	}
	return open(path, flags | O_NOFOLLOW);
}

/* Open what the name leads to, if that lies below the directory. */
static int
open_beneath(const char *directory, const char *name, int flags)
{
	struct open_how how = {
		.flags = flags | O_CLOEXEC,
		.resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS
	};
	int			root = open(directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
	int			fd;
	int			saved;

	if (root < 0)
		return -1;
	fd = syscall(SYS_openat2, root, name, &how, sizeof(how));
	saved = errno;
	close(root);
	if (fd < 0 && (saved == ENOSYS || saved == EPERM))
		return open_resolved(directory, name, flags | O_CLOEXEC);
	errno = saved;
	return fd;
}

static BackendResult
file_failed(Backend *b, const char *directory)
{
	if (errno == EXDEV)
		return backend_fail(b, ERRCODE_MLINT_CONFIGURATION, false, NULL,
							"A link is followed only to what lies below the backend's directory.",
							"its file is a link that leads out of the directory \"%s\"",
							directory);
	return backend_fail(b, ERRCODE_MLINT_CONFIGURATION, false, NULL,
						"The directory and its files must be readable by the server's operating-system user.",
						"the file, below \"%s\", cannot be read: %s",
						directory, strerror(errno));
}

static BackendResult
file_get(Backend *b, const char *name, const char *version, SecretValue *value)
{
	const FileOptions *o = (const FileOptions *) b->options;
	struct stat st;
	size_t		have = 0;
	ssize_t		n = 0;
	char	   *data = palloc(SECRET_VALUE_MAX + 2);
	int			fd;

	if (version && strcmp(version, VERSION_CURRENT) != 0)
		return BACKEND_ABSENT;
	confidential(b, data, SECRET_VALUE_MAX + 2);
	fd = open_beneath(o->directory, name, O_RDONLY | O_NONBLOCK);
	if (fd < 0 && (errno == ENOENT || errno == ENOTDIR) &&
		access(o->directory, X_OK) == 0)
		return BACKEND_ABSENT;
	if (fd < 0 || fstat(fd, &st) < 0)
	{
		if (fd >= 0)
			close(fd);
		return file_failed(b, o->directory);
	}
	if (S_ISDIR(st.st_mode))
	{
		close(fd);
		return BACKEND_ABSENT;
	}
	if (!S_ISREG(st.st_mode))
	{
		close(fd);
		return backend_fail(b, ERRCODE_MLINT_CONFIGURATION, false, NULL, NULL,
							"it is not a regular file");
	}
	while (have <= SECRET_VALUE_MAX &&
		   (n = read(fd, data + have, SECRET_VALUE_MAX + 1 - have)) > 0)
		have += n;
	if (n < 0)
	{
		int			saved = errno;

		close(fd);
		errno = saved;
		return file_failed(b, o->directory);
	}
	close(fd);
	if (have > SECRET_VALUE_MAX)
		return backend_fail(b, ERRCODE_MLINT_SERIALIZATION, false, NULL, NULL,
							"its file is larger than %d bytes", SECRET_VALUE_MAX);
	if (o->trim && have > 0 && data[have - 1] == '\n')
		have--;
	if (o->trim && have > 0 && data[have - 1] == '\r')
		have--;
	value->data = palloc(have + 1);
	memcpy(value->data, data, have);
	value->data[have] = '\0';
	value->len = have;
	value->version = pstrdup(VERSION_CURRENT);
	return BACKEND_OK;
}

static BackendResult
file_versions(Backend *b, const char *name, VersionVisitor visit, void *arg)
{
	const FileOptions *o = (const FileOptions *) b->options;
	struct stat st;
	int			fd = open_beneath(o->directory, name, O_PATH);
	int			ok;

	if (fd < 0)
		return errno == ENOENT || errno == ENOTDIR ? BACKEND_ABSENT :
			file_failed(b, o->directory);
	ok = fstat(fd, &st);
	close(fd);
	if (ok < 0 || !S_ISREG(st.st_mode))
		return BACKEND_ABSENT;
	visit(VERSION_CURRENT, true, time_from_epoch((double) st.st_mtime), arg);
	return BACKEND_OK;
}

/* The names in one directory, "" or "a/b", without those that begin with a dot. */
static List *
file_names(const char *directory, const char *below)
{
	List	   *volatile names = NIL;
	DIR		   *dir;
	struct dirent *entry;
	int			fd = open_beneath(directory, below[0] ? below : ".",
								  O_RDONLY | O_DIRECTORY);

	if (fd < 0)
		return NIL;
	dir = fdopendir(fd);
	if (dir == NULL)
	{
		close(fd);
		return NIL;
	}
	PG_TRY();
	{
		while ((entry = readdir(dir)) != NULL)
		{
			if (entry->d_name[0] != '.')
				names = lappend(names, psprintf("%s%s%s", below,
												below[0] ? "/" : "",
												entry->d_name));
		}
	}
	PG_FINALLY();
	{
		closedir(dir);
	}
	PG_END_TRY();
	return names;
}

static void
file_walk(const char *directory, const char *below, const char *prefix,
		  int depth, NameVisitor visit, void *arg)
{
	ListCell   *lc;

	CHECK_FOR_INTERRUPTS();
	foreach(lc, file_names(directory, below))
	{
		char	   *name = lfirst(lc);
		size_t		common = Min(strlen(name), strlen(prefix));
		struct stat st;
		int			fd;
		int			ok;

		if (strncmp(name, prefix, common) != 0)
			continue;
		fd = open_beneath(directory, name, O_PATH);
		if (fd < 0)
			continue;
		ok = fstat(fd, &st);
		close(fd);
		if (ok == 0 && S_ISREG(st.st_mode) && strlen(name) >= strlen(prefix))
			visit(name, arg);
		else if (ok == 0 && S_ISDIR(st.st_mode) && depth < DEPTH_MAX)
			file_walk(directory, name, prefix, depth + 1, visit, arg);
	}
}

static BackendResult
file_list(Backend *b, const char *prefix, NameVisitor visit, void *arg)
{
	const FileOptions *o = (const FileOptions *) b->options;

	if (access(o->directory, R_OK | X_OK) != 0)
		return file_failed(b, o->directory);
	file_walk(o->directory, "", prefix, 0, visit, arg);
	return BACKEND_OK;
}

static void
count_name(const char *name, void *arg)
{
	(*(int *) arg)++;
}

static BackendResult
file_test(Backend *b, char **words)
{
	int			n = 0;

	if (file_list(b, "", count_name, &n) != BACKEND_OK)
		return BACKEND_FAILED;
	*words = psprintf("%d files below \"%s\"", n,
					  ((const FileOptions *) b->options)->directory);
	return BACKEND_OK;
}

const BackendKind file_kind = {
	.base.name = "file",
	.base.help = "files below a directory of the server, read only",
	.base.options = file_options,
	.base.options_size = sizeof(FileOptions),
	.local = true,
	.check = file_check,
	.get = file_get,
	.versions = file_versions,
	.list = file_list,
	.test = file_test,
};
