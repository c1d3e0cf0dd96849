/*
 * aws.h
 *		What options say of an access to AWS, or to a service like it.
 *
 * Whoever speaks to one has an AwsAccess in its options, and its rows in its
 * table of them. What is signed with it, sigv4.h does.
 */
#ifndef MLINT_AWS_H
#define MLINT_AWS_H

#include "common/option.h"

typedef struct AwsAccess
{
	char	   *ca;				/* PEM; NULL: the system's store */
	char	   *access_key_id;
	Credential	secret_access_key;
	Credential	session_token;
} AwsAccess;

/*
 * The rows of an AwsAccess at "offset"; the key is required or not, and key_help
 * says what it is.
 */
#define AWS_ACCESS_OPTIONS(offset, required, key_help) \
	{"ca", OPTION_TEXT, (offset) + offsetof(AwsAccess, ca), NULL, 0, 0, \
	NULL, NULL, false, "certificates to trust instead of the system's, PEM"}, \
	{"access_key_id", OPTION_TEXT, \
	(offset) + offsetof(AwsAccess, access_key_id), NULL, 0, 0, \
	NULL, NULL, required, key_help}, \
	{"secret_access_key", OPTION_CREDENTIAL, \
	(offset) + offsetof(AwsAccess, secret_access_key), NULL, 0, 0, \
	NULL, NULL, required, "the secret that belongs to access_key_id"}, \
	{"session_token", OPTION_CREDENTIAL, \
	(offset) + offsetof(AwsAccess, session_token), NULL, 0, 0, \
	NULL, NULL, false, "session token, where the key is a temporary one"}

/*
 * Raise ERRCODE_MLINT_CONFIGURATION when this value of an option of "what" (or
 * an element of it) is not the name of a region.
 */
extern void aws_region_check(const char *region, const char *option,
							 const char *what);

/* The URL of a service in a region, palloc'd, without a slash at its end. */
extern char *aws_url(const char *service, const char *region);

#endif
