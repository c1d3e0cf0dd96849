/*
 * erasure_key.c
 *		The erasure key file: derive its leaves, cut them out, replace it.
 *
 * The tree has 2^63 leaves. A node at level l covers 2^l of them, and is 32
 * bytes; its two children are HMAC-SHA-256 under it of a label and a bit. The
 * file is the list of those nodes that are still there, in the order of the
 * leaves that they cover, so to find the one above a leaf is a binary search,
 * and where there is none the leaf was destroyed. Cutting a leaf replaces
 * the node above it by at most one sibling for each level in between;
 * n neighbours that are cut together or one after the other leave the siblings
 * of one path, because what lies between them disappears.
 *
 * Replacing. Whoever does it holds a lock across all databases. The new file
 * is written beside the old one and synced, the old one gets a second name,
 * the new one is renamed over it, and the old one's bytes are overwritten by
 * way of the second name before that goes, too. A crash leaves the old file or
 * the new one, whole, and perhaps one of the two other names; whoever comes
 * next overwrites what it finds under these before it does anything else. (A
 * file system that copies on write, and a disk that moves blocks, keep old bytes
 * for a while all the same. Nothing that runs above them can help that.)
 *
 * A process keeps the file in memory that is never swapped out nor dumped as
 * far as the system allows, and looks at the file's identity and times with
 * each use: after a change it wipes what it has and reads again.
 */
#include "postgres.h"

#include <fcntl.h>
#include <limits.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/compat.h"
#include "common/errors.h"
#include "common/injection.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "secrets/erasure_key.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "storage/lock.h"
#include "utils/guc.h"

#define FILE_SETTING	"mlint.erasure_key_file"
#define DEFAULT_FILE	"mlint_erasure.key" /* in the data directory */

#define MAGIC			"mlinterk"
#define FORMAT			1
#define TREE_LEVEL		63		/* of the root */
/* Far more than any use comes to: 2.5 GB. */
#define MAX_NODES		(64 * 1024 * 1024)

/* Names beside the file's own, for what is to be overwritten. */
#define NEW_FILE		".new"
#define OLD_FILE		".old"

#define CHILD_LABEL		"mlint erasure key node"
#define LEAF_LABEL		"mlint erasure key leaf"

/* Tells our lock from those of pg_advisory_lock(), which name a database. */
#define FILE_LOCK_ID	0x6d6c656b

/* The file, as it is on disk: numbers in network order, nothing aligned. */
typedef struct FileHeader
{
	char		magic[8];
	uint8		format[4];
	uint8		nodes[4];
	uint8		tree[ERASURE_ID_BYTES];
	uint8		revision[ERASURE_ID_BYTES];
	uint8		sha256[CRYPTO_SHA256_BYTES];	/* of all, this being zero */
} FileHeader;

typedef struct FileNode
{
	uint8		first[8];		/* leaf */
	uint8		level;
	uint8		key[CRYPTO_KEY_BYTES];
} FileNode;

StaticAssertDecl(sizeof(FileHeader) == 80, "a file's header has no gaps");
StaticAssertDecl(sizeof(FileNode) == 41, "a file's nodes have no gaps");

/* The content of a file, on pages of its own. */
typedef struct Content
{
	FileHeader *header;			/* NULL: none */
	FileNode   *nodes;
	uint32		n;
	size_t		size;
} Content;

static char *erasure_key_file;

/* What this process has read, and the file that it was. */
static Content cached;
static struct stat cached_stat;

/* A file that is being made. */
static Content draft;

/* ---- memory ---- */

static void
content_free(Content *content)
{
	if (content->header)
	{
		crypto_wipe(content->header, content->size);
		munmap(content->header, content->size);
	}
	memset(content, 0, sizeof(*content));
}

static void
erasure_key_at_exit(int code, Datum arg)
{
	content_free(&cached);
	content_free(&draft);
}

/* Room for a file of this size. */
static void
content_allocate(Content *content, size_t size)
{
	static bool prepared = false;
	void	   *pages;

	if (!prepared)
		on_proc_exit(erasure_key_at_exit, 0);
	prepared = true;
	content_free(content);
	pages = mmap(NULL, size, PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (pages == MAP_FAILED)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory")));
	(void) mlock(pages, size);
#ifdef MADV_DONTDUMP
	(void) madvise(pages, size, MADV_DONTDUMP);
#endif
	content->header = pages;
	content->nodes = (FileNode *) (content->header + 1);
	content->n = (size - sizeof(FileHeader)) / sizeof(FileNode);
	content->size = size;
}

static size_t
content_size(uint32 nodes)
{
	return sizeof(FileHeader) + (size_t) nodes * sizeof(FileNode);
}

static void
erasure_key_setting_changed(const char *newval, void *extra)
{
	content_free(&cached);
}

void
erasure_key_define_settings(void)
{
	DefineCustomStringVariable(FILE_SETTING,
							   "File with the keys of what can be destroyed for good.",
							   "A relative path starts in the data directory, where base backups copy the file. Set it to keep the file apart from these: then what is destroyed can no longer be read from a backup either.",
							   &erasure_key_file, DEFAULT_FILE,
							   PGC_SIGHUP, GUC_SUPERUSER_ONLY,
							   NULL, erasure_key_setting_changed, NULL);
}

/* ---- the tree ---- */

static uint64
get64(const uint8 *from)
{
	uint64		value;

	memcpy(&value, from, sizeof(value));
	return pg_ntoh64(value);
}

static void
put64(uint8 *to, uint64 value)
{
	value = pg_hton64(value);
	memcpy(to, &value, sizeof(value));
}

static uint32
get32(const uint8 *from)
{
	uint32		value;

	memcpy(&value, from, sizeof(value));
	return pg_ntoh32(value);
}

static void
put32(uint8 *to, uint32 value)
{
	value = pg_hton32(value);
	memcpy(to, &value, sizeof(value));
}

/* A node's left or right child; to may be the node. */
static void
derive_child(const uint8 *node, int bit, uint8 to[CRYPTO_KEY_BYTES])
{
	uint8		side = bit;
	HmacPart	parts[] = {
		{CHILD_LABEL, sizeof(CHILD_LABEL)},
		{&side, 1}
	};

	crypto_hmac(node, CRYPTO_KEY_BYTES, parts, lengthof(parts), to);
}

/* The node that covers a leaf; NULL: there is none any more. */
static const FileNode *
find_node(const Content *content, uint64 leaf)
{
	uint32		low = 0;
	uint32		high = content->n;
	const FileNode *node;

	/* The last one that does not begin behind the leaf. */
	while (low < high)
	{
		uint32		middle = low + (high - low) / 2;

		if (get64(content->nodes[middle].first) <= leaf)
			low = middle + 1;
		else
			high = middle;
	}
	if (low == 0)
		return NULL;
	node = &content->nodes[low - 1];
	return leaf - get64(node->first) < UINT64CONST(1) << node->level ?
		node : NULL;
}

/*
 * What is left of a node without these leaves, which are in order and all its
 * own, is put behind "to"; with to NULL it is only counted. Returns how many
 * nodes that are.
 */
static uint32
cut_node(const uint8 *key, uint64 first, int level, const int64 *leaves,
		 int n, FileNode *to)
{
	uint8		child[CRYPTO_KEY_BYTES] = {0};
	uint64		middle;
	uint32		made = 0;
	int			left = 0;

	if (n == 0)
	{
		if (to)
		{
			put64(to->first, first);
			to->level = level;
			memcpy(to->key, key, CRYPTO_KEY_BYTES);
		}
		return 1;
	}
	if (level < 31 && n == 1 << level)
		return 0;

	middle = first + (UINT64CONST(1) << (level - 1));
	{
		int			high = n;

		while (left < high)
		{
			int			at = left + (high - left) / 2;

			if ((uint64) leaves[at] < middle)
				left = at + 1;
			else
				high = at;
		}
	}
	for (int bit = 0; bit < 2; bit++)
	{
		if (to)
			derive_child(key, bit, child);
		made += cut_node(child, bit ? middle : first, level - 1,
						 bit ? leaves + left : leaves,
						 bit ? n - left : left, to ? to + made : NULL);
	}
	crypto_wipe(child, sizeof(child));
	return made;
}

/*
 * Put what is left of a file without these leaves, which are in order, behind
 * "to", or count it. Leaves that are gone already are passed over.
 */
static uint32
cut_leaves(const Content *from, const int64 *leaves, int n, FileNode *to)
{
	uint32		made = 0;
	int			at = 0;

	for (uint32 i = 0; i < from->n; i++)
	{
		const FileNode *node = &from->nodes[i];
		uint64		first = get64(node->first);
		int			begin;

		while (at < n && (uint64) leaves[at] < first)
			at++;
		begin = at;
		while (at < n &&
			   (uint64) leaves[at] - first < UINT64CONST(1) << node->level)
			at++;
		made += cut_node(node->key, first, node->level, leaves + begin,
						 at - begin, to ? to + made : NULL);
		CHECK_FOR_INTERRUPTS();
	}
	return made;
}

/* ---- the file ---- */

/* The digest of a file; the header's own is taken for zero meanwhile. */
static void
content_digest(Content *content, uint8 sha256[CRYPTO_SHA256_BYTES])
{
	uint8		kept[CRYPTO_SHA256_BYTES];
	uint8		digest[CRYPTO_SHA256_BYTES];

	memcpy(kept, content->header->sha256, sizeof(kept));
	memset(content->header->sha256, 0, sizeof(kept));
	crypto_sha256(content->header, content->size, digest);
	memcpy(content->header->sha256, kept, sizeof(kept));
	memcpy(sha256, digest, sizeof(digest));
}

/* Is this what we write? */
static bool
content_valid(Content *content)
{
	FileHeader *header = content->header;
	uint8		sha256[CRYPTO_SHA256_BYTES];
	uint64		next = 0;

	if (memcmp(header->magic, MAGIC, sizeof(header->magic)) != 0 ||
		get32(header->format) != FORMAT ||
		get32(header->nodes) > MAX_NODES ||
		content->size != content_size(get32(header->nodes)))
		return false;
	content_digest(content, sha256);
	if (memcmp(header->sha256, sha256, sizeof(sha256)) != 0)
		return false;
	for (uint32 i = 0; i < content->n; i++)
	{
		const FileNode *node = &content->nodes[i];
		uint64		first = get64(node->first);
		uint64		covers;

		if (node->level > TREE_LEVEL)
			return false;
		covers = UINT64CONST(1) << node->level;
		if (first < next || first % covers != 0 || first > PG_INT64_MAX)
			return false;
		next = first + covers;
	}
	return true;
}

const char *
erasure_key_source(void)
{
	return strcmp(erasure_key_file, DEFAULT_FILE) == 0 ||
		erasure_key_file[0] == '\0' ?
		"\"" DEFAULT_FILE "\" in the data directory" : FILE_SETTING;
}

/* The file itself, where the setting may name a symbolic link to it. */
static void
file_path(char path[MAXPGPATH])
{
	const char *set = erasure_key_file[0] != '\0' ? erasure_key_file :
	DEFAULT_FILE;
	char	   *real = realpath(set, NULL);

	strlcpy(path, real ? real : set, MAXPGPATH);
	free(real);
}

static void
name_beside(char to[MAXPGPATH], const char *path, const char *suffix)
{
	if (snprintf(to, MAXPGPATH, "%s%s", path, suffix) >= MAXPGPATH)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("the path in %s is too long", FILE_SETTING)));
}

bool
erasure_key_in_data_directory(void)
{
	char		path[MAXPGPATH];
	char		directory[MAXPGPATH];
	char	   *real = realpath(DataDir, NULL);

	strlcpy(directory, real ? real : DataDir, sizeof(directory));
	free(real);
	file_path(path);
	if (!is_absolute_path(path))
		return true;
	canonicalize_path(path);
	return path_is_prefix_of_path(directory, path);
}

static void
pg_attribute_noreturn()
file_missing(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_MLINT_MASTER_KEY),
			 errmsg("the erasure key file is missing"),
			 errdetail("Data keys in this database were made with it, and do not open without it. It is expected at %s.",
					   erasure_key_source()),
			 errdetail_log("The file is \"%s\".", erasure_key_file),
			 errhint("Put the file back from its newest copy, or set %s to where it is now. Nothing is lost: all opens again with it.",
					 FILE_SETTING)));
}

static void
pg_attribute_noreturn()
file_unreadable(const char *path)
{
	ereport(ERROR,
			(errcode(ERRCODE_MLINT_MASTER_KEY),
			 errmsg("could not read the erasure key file: %m"),
			 errdetail_log("The file is \"%s\".", path),
			 errhint("It must be a file of the server's operating-system user.")));
}

/*
 * Read the file anew; false when there is none. As for the master key, nobody
 * else may be able to read it.
 */
static bool
file_read(void)
{
	char		path[MAXPGPATH];
	struct stat st;
	struct stat now;
	size_t		got = 0;
	int			fd;
	bool		valid;
	bool		replaced;

	content_free(&cached);
	file_path(path);
	/* O_NONBLOCK, so that a FIFO cannot hold us. */
	fd = OpenTransientFile(path, O_RDONLY | O_NONBLOCK | PG_BINARY);
	if (fd < 0 && errno == ENOENT)
		return false;
	if (fd < 0 || fstat(fd, &st) < 0)
		file_unreadable(path);
	if (st.st_uid != geteuid() || (st.st_mode & (S_IRWXG | S_IRWXO)) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_MASTER_KEY),
				 errmsg("the erasure key file can be read by others, or is not the server's"),
				 errdetail_log("The file is \"%s\".", path),
				 errhint("It must be owned by the server's operating-system user, with permissions u=rw (0600) or less.")));

	if (S_ISREG(st.st_mode) && st.st_size >= (off_t) sizeof(FileHeader) &&
		st.st_size <= (off_t) content_size(MAX_NODES))
	{
		content_allocate(&cached, st.st_size);
		while (got < cached.size)
		{
			ssize_t		n = read(fd, (char *) cached.header + got,
								 cached.size - got);

			if (n < 0 && errno == EINTR)
				continue;
			if (n < 0)
			{
				content_free(&cached);
				file_unreadable(path);
			}
			if (n == 0)
				break;
			got += n;
		}
	}
	valid = cached.header != NULL && got == cached.size &&
		content_valid(&cached);
	/* It may have been replaced, and then overwritten, while we read it. */
	replaced = !valid && stat(path, &now) == 0 &&
		(now.st_ino != st.st_ino || now.st_dev != st.st_dev);
	CloseTransientFile(fd);
	if (!valid)
		content_free(&cached);
	if (replaced)
	{
		CHECK_FOR_INTERRUPTS();
		return file_read();
	}
	if (!valid)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_MASTER_KEY),
				 errmsg("the erasure key file is damaged, or is another file"),
				 errdetail("It was found at %s.", erasure_key_source()),
				 errdetail_log("The file is \"%s\".", path),
				 errhint("Put it back from its newest copy: what was destroyed since then is destroyed again by the job data_key_erase.")));
	cached_stat = st;
	return true;
}

/* Have the file in memory as it is now; false when there is none. */
static bool
file_current(void)
{
	struct stat st;

	if (cached.header != NULL &&
		stat(erasure_key_file[0] != '\0' ? erasure_key_file : DEFAULT_FILE,
			 &st) == 0 &&
		st.st_dev == cached_stat.st_dev && st.st_ino == cached_stat.st_ino &&
		st.st_size == cached_stat.st_size &&
		st.st_mtim.tv_sec == cached_stat.st_mtim.tv_sec &&
		st.st_mtim.tv_nsec == cached_stat.st_mtim.tv_nsec &&
		st.st_ctim.tv_sec == cached_stat.st_ctim.tv_sec &&
		st.st_ctim.tv_nsec == cached_stat.st_ctim.tv_nsec)
		return true;
	return file_read();
}

/* The same, of this tree. */
static void
file_of_tree(const uint8 *tree)
{
	if (!file_current())
		file_missing();
	if (memcmp(cached.header->tree, tree, ERASURE_ID_BYTES) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_MASTER_KEY),
				 errmsg("this is not the erasure key file that the data key was made with"),
				 errdetail("It was found at %s.", erasure_key_source()),
				 errhint("Set %s to where that of the cluster is that this database comes from, or put that in its place; but keep the one that is there: other databases may have made keys with it.",
						 FILE_SETTING)));
}

static void
pg_attribute_noreturn()
write_failed(const char *path)
{
	/* A write that ends early is a disk that is full. */
	if (errno == 0)
		errno = ENOSPC;
	ereport(ERROR,
			(errcode_for_file_access(),
			 errmsg("could not write file \"%s\": %m", path)));
}

/* Overwrite what the file holds, as far as that reaches the disk. */
static void
overwrite(int fd, const char *path)
{
	static const char zeros[8192];
	struct stat st;
	off_t		at = 0;

	if (fstat(fd, &st) < 0)
		write_failed(path);
	while (at < st.st_size)
	{
		ssize_t		n;

		errno = 0;
		n = pwrite(fd, zeros, Min(st.st_size - at, (off_t) sizeof(zeros)), at);
		if (n <= 0 && errno != EINTR)
			write_failed(path);
		at += Max(n, 0);
	}
	if (pg_fsync(fd) != 0)
		write_failed(path);
}

static void
sync_directory(const char *path)
{
	char		directory[MAXPGPATH];

	strlcpy(directory, path, sizeof(directory));
	get_parent_directory(directory);
	fsync_fname(directory[0] != '\0' ? directory : ".", true);
}

/* What somebody who crashed left under this name is overwritten. */
static void
sweep(const char *path, const char *suffix)
{
	char		name[MAXPGPATH];
	struct stat now;
	struct stat left;
	int			fd;

	name_beside(name, path, suffix);
	if (lstat(name, &left) < 0)
		return;
	/* A crash before the rename: it is the file itself, by a second name. */
	if (S_ISREG(left.st_mode) &&
		(stat(path, &now) < 0 || now.st_dev != left.st_dev ||
		 now.st_ino != left.st_ino))
	{
		fd = OpenTransientFile(name, O_WRONLY | O_NOFOLLOW | PG_BINARY);
		if (fd < 0)
			write_failed(name);
		overwrite(fd, name);
		CloseTransientFile(fd);
	}
	if (unlink(name) < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not remove file \"%s\": %m", name)));
	sync_directory(path);
}

/* The lock that whoever replaces the file holds, in any database. */
static void
file_lock(LOCKTAG *tag)
{
	SET_LOCKTAG_ADVISORY(*tag, InvalidOid, FILE_LOCK_ID, 0, 0);
	(void) LockAcquire(tag, ExclusiveLock, false, false);
}

/* A tree with all its leaves. */
static void
draft_new_tree(void)
{
	content_allocate(&draft, content_size(1));
	crypto_random(draft.header->tree, ERASURE_ID_BYTES);
	put64(draft.nodes[0].first, 0);
	draft.nodes[0].level = TREE_LEVEL;
	crypto_random(draft.nodes[0].key, CRYPTO_KEY_BYTES);
}

/* What we have read without these leaves, which are in order and living. */
static void
draft_without(const int64 *leaves, int n)
{
	uint32		nodes = cut_leaves(&cached, leaves, n, NULL);

	if (nodes > MAX_NODES)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("the erasure key file has grown too large")));
	content_allocate(&draft, content_size(nodes));
	memcpy(draft.header->tree, cached.header->tree, ERASURE_ID_BYTES);
	(void) cut_leaves(&cached, leaves, n, draft.nodes);
}

/* Put the draft in the file's place. */
static void
draft_publish(const char *path)
{
	char		new_name[MAXPGPATH];
	char		old_name[MAXPGPATH];
	FileHeader *header = draft.header;
	size_t		done = 0;
	int			old;
	int			fd;

	memcpy(header->magic, MAGIC, sizeof(header->magic));
	put32(header->format, FORMAT);
	put32(header->nodes, draft.n);
	crypto_random(header->revision, sizeof(header->revision));
	content_digest(&draft, header->sha256);

	name_beside(new_name, path, NEW_FILE);
	name_beside(old_name, path, OLD_FILE);
	fd = OpenTransientFilePerm(new_name,
							   O_CREAT | O_EXCL | O_WRONLY | PG_BINARY,
							   S_IRUSR | S_IWUSR);
	if (fd < 0)
		write_failed(new_name);
	while (done < draft.size)
	{
		ssize_t		n;

		errno = 0;
		n = write(fd, (char *) header + done, draft.size - done);
		if (n <= 0 && errno != EINTR)
			write_failed(new_name);
		done += Max(n, 0);
	}
	errno = 0;
	if (pg_fsync(fd) != 0 || CloseTransientFile(fd) != 0)
		write_failed(new_name);
	INJECTION("erasure-key-written");

	old = OpenTransientFile(path, O_WRONLY | PG_BINARY);
	if (old < 0 && errno != ENOENT)
		write_failed(path);
	/* Where there are no second names a crash leaves the old bytes behind. */
	if (old >= 0 && link(path, old_name) == 0)
		sync_directory(path);
	INJECTION("erasure-key-linked");
	durable_rename(new_name, path, ERROR);
	INJECTION("erasure-key-renamed");
	if (old >= 0)
	{
		overwrite(old, path);
		CloseTransientFile(old);
		INJECTION("erasure-key-overwritten");
		sweep(path, OLD_FILE);
	}
}

/* Replace the file by one without these leaves, or make it. We hold the lock. */
static void
file_replace(const char *path, const int64 *leaves, int n)
{
	PG_TRY();
	{
		if (n > 0)
			draft_without(leaves, n);
		else
			draft_new_tree();
		draft_publish(path);
	}
	PG_CATCH();
	{
		content_free(&draft);
		PG_RE_THROW();
	}
	PG_END_TRY();
	content_free(&draft);
}

/* The file of a cluster that has none yet. */
static void
file_make(void)
{
	char		path[MAXPGPATH];
	LOCKTAG		tag;

	file_lock(&tag);
	if (!file_read())
	{
		file_path(path);
		sweep(path, NEW_FILE);
		file_replace(path, NULL, 0);
		ereport(LOG,
				(errmsg("mlint made a new erasure key file: %s",
						erasure_key_source()),
				 errhint("Keep a copy apart from the database's backups, and a new one after each destruction: without it archives do not open.")));
		if (!file_read())
			elog(ERROR, "the erasure key file just written is gone");
	}
	(void) LockRelease(&tag, ExclusiveLock, false);
}

/* ---- what others call ---- */

void
erasure_key_look(bool may_make, ErasureKeyFile *file)
{
	if (!file_current())
	{
		if (!may_make)
			file_missing();
		file_make();
	}
	memcpy(file->tree, cached.header->tree, ERASURE_ID_BYTES);
	memcpy(file->revision, cached.header->revision, ERASURE_ID_BYTES);
	file->bytes = cached.size;
}

bool
erasure_key_living(const uint8 *tree, int64 leaf)
{
	file_of_tree(tree);
	return find_node(&cached, leaf) != NULL;
}

bool
erasure_key_leaf(const uint8 *tree, int64 leaf, uint8 key[CRYPTO_KEY_BYTES])
{
	HmacPart	label = {LEAF_LABEL, sizeof(LEAF_LABEL)};
	const FileNode *node;

	file_of_tree(tree);
	node = find_node(&cached, leaf);
	if (node == NULL)
		return false;
	memcpy(key, node->key, CRYPTO_KEY_BYTES);
	for (int level = node->level; level > 0; level--)
		derive_child(key, leaf >> (level - 1) & 1, key);
	crypto_hmac(key, CRYPTO_KEY_BYTES, &label, 1, key);
	return true;
}

static int
leaf_cmp(const void *a, const void *b)
{
	int64		left = *(const int64 *) a;
	int64		right = *(const int64 *) b;

	return (left > right) - (left < right);
}

void
erasure_key_destroy(const uint8 *tree, int64 *leaves, int n,
					uint8 found[ERASURE_ID_BYTES],
					uint8 left[ERASURE_ID_BYTES])
{
	char		path[MAXPGPATH];
	LOCKTAG		tag;
	int			living = 0;

	qsort(leaves, n, sizeof(int64), leaf_cmp);
	file_lock(&tag);
	/* Not if the file is gone: what is left under these names may be all. */
	file_of_tree(tree);
	file_path(path);
	sweep(path, NEW_FILE);
	sweep(path, OLD_FILE);
	memcpy(found, cached.header->revision, ERASURE_ID_BYTES);

	for (int i = 0; i < n; i++)
	{
		if ((living == 0 || leaves[living - 1] != leaves[i]) &&
			find_node(&cached, leaves[i]))
			leaves[living++] = leaves[i];
	}
	if (living > 0)
	{
		file_replace(path, leaves, living);
		file_of_tree(tree);
	}
	memcpy(left, cached.header->revision, ERASURE_ID_BYTES);
	(void) LockRelease(&tag, ExclusiveLock, false);
}
