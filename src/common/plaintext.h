/*
 * plaintext.h
 *		A text argument as the bytes that the world outside sees.
 *
 * What is sealed, signed or sent is UTF-8, whatever the database's encoding.
 * Taking an argument may copy it (out of line values, compressed values,
 * other encodings); plaintext_wipe() overwrites the copies and leaves the
 * caller's own value alone.
 */
#ifndef MLINT_PLAINTEXT_H
#define MLINT_PLAINTEXT_H

typedef struct Plaintext
{
	const char *data;			/* not terminated */
	size_t		len;
	struct varlena *detoasted;	/* our copies, or NULL */
	char	   *converted;
} Plaintext;

extern Plaintext plaintext_take(Datum argument);
extern void plaintext_wipe(Plaintext *p);

/* The way back: UTF-8 bytes as a text in the database's encoding. */
extern text *plaintext_give(char *data, size_t len);

#endif
