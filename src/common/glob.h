/*
 * glob.h
 *		Glob patterns on event types and host names.
 */
#ifndef MLINT_GLOB_H
#define MLINT_GLOB_H

/*
 * '*' matches any run of characters, dots too; '?' matches one; all else
 * matches itself. Linear in pattern times text at worst, no recursion.
 */
extern bool glob_match(const char *pattern, const char *text);

#endif
