/* server/web.h - the page at the server's root: the files of src/server/web, which are part of the program. They hold nothing
 * of the model, so they need no key. I/O thread. Includes: server/http.h. */
#ifndef MOEBIUS_SERVER_WEB_H
#define MOEBIUS_SERVER_WEB_H

#include "server/http.h"

/* "/": the page for who accepts HTML, which browsers do, and for the others what Ollama says there. */
enum MHD_Result web_handle_root(struct exchange *exchange);
/* "", which is --root-path alone: what "/" says, from where the page finds what it asks for. */
enum MHD_Result web_handle_prefix(struct exchange *exchange);
/* "/index.html": the page. */
enum MHD_Result web_handle_page(struct exchange *exchange);
/* "/web/NAME": what the page asks for. */
enum MHD_Result web_handle_file(struct exchange *exchange);

#endif
