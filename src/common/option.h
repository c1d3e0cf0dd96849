/*
 * option.h
 *		The one option parser: a JSON object against a table, into a struct.
 *
 * A room describes its options in a static array of Option; the same array
 * validates what a caller passes, fills a C struct, and makes the rows of
 * mlint.drivers. An unknown key is an error that lists the known ones; so are
 * a wrong type and a value out of bounds. null counts as not given.
 */
#ifndef MLINT_OPTION_H
#define MLINT_OPTION_H

#include "common/credential.h"
#include "nodes/execnodes.h"
#include "utils/jsonb.h"

typedef enum OptionType
{
	OPTION_TEXT,				/* char * */
	OPTION_URL,					/* char *, http or https, no user:password@ */
	OPTION_INT,					/* int */
	OPTION_REAL,				/* double */
	OPTION_BOOL,				/* bool */
	OPTION_ENUM,				/* int: index into choices */
	OPTION_CREDENTIAL,			/* Credential */
	OPTION_CREDENTIALS,			/* CredentialList: one reference or an array */
	OPTION_LIST,				/* char **, NULL at the end: an array of
								 * strings, or one with commas */
	OPTION_FUNCTION,			/* char *, a function's name as text */
	OPTION_JSON,				/* Jsonb *, an object, checked by the caller */
	OPTION_GROUP				/* a nested object with its own table */
} OptionType;

typedef struct CredentialList
{
	int			n;
	Credential *items;
} CredentialList;

typedef struct Option
{
	const char *name;			/* NULL ends a table */
	OptionType	type;
	size_t		offset;			/* where the value goes in the caller's struct */
	const char *preset;			/* the default as text; NULL: none */
	double		min;			/* bounds of OPTION_INT and OPTION_REAL; */
	double		max;			/* none unless min < max */
	const char *const *choices; /* OPTION_ENUM: NULL-terminated */
	const struct Option *group; /* OPTION_GROUP: its table, offsets from the
								 * same struct */
	bool		required;		/* in a group: when the group is given */
	const char *help;			/* one line, units included */
} Option;

/*
 * Fill *out from options (an object; NULL counts as {}), by the given tables.
 * "what" names the object for messages ("destination \"x\""). Strings are
 * palloc'd in the current context. Raises ERRCODE_MLINT_CONFIGURATION.
 */
extern void option_parse(const Option *const *tables, int ntables,
						 Jsonb *options, const char *what, void *out);

/*
 * May this role use every credential that parsed options name? Raises what
 * credential_check() does; "what" names the object, as above.
 */
extern void option_check_credentials(const Option *const *tables, int ntables,
									 const void *parsed, Oid role,
									 const char *what);

/*
 * The names of the options that are given, as a JSON array; values do not
 * belong into the audit log.
 */
extern void option_names(StringInfo json, Jsonb *options);

/*
 * One row for each option, groups flattened to "group.option": of what it is
 * an option, name, type, preset, bounds, whether required, help.
 */
extern void option_rows(ReturnSetInfo *result, const char *of,
						const Option *table);

#endif
