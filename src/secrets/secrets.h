/*
 * secrets.h
 *		The local secret store: envelope encryption in a table.
 *
 * Each version of a secret is sealed (AES-256-GCM) under a data key of its
 * own, and the data key under the master key; the name and the version are
 * bound in as additional data, so that a ciphertext moved to another row does
 * not open. The master key is never in a table: it comes from
 * mlint.master_key_command, else mlint.master_key_file, else a 0600 file in
 * the data directory, made at first use. A check value of it is stored with
 * the first secret, so that a wrong key is an error that names the remedy and
 * never a new secret sealed under another key.
 */
#ifndef MLINT_SECRETS_H
#define MLINT_SECRETS_H

/* Settings, and the resolver behind {"secret": …}. Called once by _PG_init. */
extern void secrets_init(void);

/*
 * The value of a secret, palloc'd in the current context and terminated; the
 * caller wipes it. version 0 is the current one. Raises
 * ERRCODE_UNDEFINED_OBJECT, ERRCODE_MLINT_MASTER_KEY or
 * ERRCODE_MLINT_SECRET_CORRUPT. No privilege is checked: that is the
 * caller's. Needs a transaction.
 */
extern char *secret_value(const char *name, int version, size_t *len);
extern bool secret_exists(const char *name);

#endif
