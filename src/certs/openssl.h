/*
 * openssl.h
 *		Objects of OpenSSL, between the files that x509.h stands for.
 */
#ifndef MLINT_CERTS_OPENSSL_H
#define MLINT_CERTS_OPENSSL_H

#include <openssl/evp.h>

/* A private key from PEM, the caller's to free; NULL: it cannot be read. */
extern EVP_PKEY *key_load(const char *pem);

#endif
