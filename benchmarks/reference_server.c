/* A server whose timing is known: the yardstick that clients are held against.
 *
 * One thread, epoll, HTTP/1.1 keep-alive. Any POST is answered as an OpenAI chat completion: server-sent events
 * in HTTP chunks, the first token `--ttft-ms` after the request, then one every `--itl-ms`, then a finish_reason
 * chunk, a usage chunk and [DONE]. It notes when each request was there and when each token was written, on
 * CLOCK_MONOTONIC (the clock that Python's perf_counter reads on Linux), and knows nothing of who asks or why.
 *
 * When is a request "there"? When epoll said so, before the server got round to reading it: what it spends on
 * others is its own time, not its client's. When is a token written? Just before its write() begins.
 *
 * GET /stats[?reset]  counts and the mean in flight of the window, as JSON
 * GET /truth[?clear]  writes the ground truth to the file named by --truth (as SIGTERM and SIGINT do); with
 *                     ?clear it is then forgotten, unless a request is in flight
 * GET anything else   a list of one model, which is also a health check
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define SERIAL "@@@@@@@@@@@@" /* where a template takes the request's serial number */
#define SERIAL_LEN 12
#define ID_LEN 96
#define EVENTS_PER_TURN 64  /* small, so that a crowd of requests does not hold up the tokens that are due */
#define TOKENS_PER_TURN 64  /* and the other way round */
#define REQUEST_CAP (16u << 20)
#define TOKEN_TIMES (1u << 29)

struct options {
    int port;
    int64_t ttft_ns, itl_ns, spin_ns;
    long tokens, max_tokens, max_requests;
    bool never_sleep, together, role, headers_first, separate_finish, tokens_from_body, token_times;
    const char *truth;
};

/* What is remembered of one request; times in ns of CLOCK_MONOTONIC, 0 where it never happened. */
struct row {
    char id[ID_LEN];
    int64_t received_ns, first_ns, last_ns;
    uint64_t tokens_at; /* index of its first token in token_ns */
    uint32_t tokens, in_flight, blocked, fd;
};

/* Bytes to send, with the places where the serial number goes. */
struct piece {
    char *text;
    size_t len, slot[4];
    int slots;
};

struct connection {
    struct connection *previous, *next; /* in the queue it waits in */
    struct queue *queue;
    int64_t due_ns;
    int fd;
    char *in, *out;
    size_t in_len, in_cap, out_at, out_len, out_cap;
    struct row *row; /* of the answer under way; NULL between requests */
    uint64_t serial;
    uint32_t wanted, sent; /* tokens */
    bool streams, usage, closing, head_sent;
};

/* Connections in order of what is due. One delay per queue keeps it sorted without a heap. */
struct queue {
    struct connection *first, *last;
};

struct request {
    const char *method, *path, *body;
    size_t path_len, body_len, whole;
    char id[ID_LEN];
    bool closing, expects, unsized;
};

static struct options opt = {.spin_ns = 60000, .tokens = 64, .max_tokens = 4096, .max_requests = 4000000};
static struct queue first_tokens, next_tokens;
static struct piece head, role, token, tail, answers;
static long tail_tokens = -1;
static struct connection **connections;
static size_t connection_cap;
static int poller, listener, signals;
static struct row *rows;
static int64_t *token_ns;
static uint64_t requests, tokens_used, served, aborted, bytes_written, open_connections;
static uint32_t in_flight, max_in_flight;
static int64_t window_began_ns, in_flight_since_ns, waited_ns;
static double in_flight_ns; /* integral of the requests in flight over the window */

static _Noreturn void die(const char *what) {
    fprintf(stderr, "reference_server: %s%s%s\n", what, errno ? ": " : "", errno ? strerror(errno) : "");
    exit(1);
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* ---- ground truth ---- */

/* Address space for an array that must never be moved: a page is taken as it is first touched. */
static void *reserve(size_t bytes) {
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) die("cannot reserve memory for the truth");
    madvise(at, bytes, MADV_NOHUGEPAGE); /* clearing 2 MB at once would be a pause */
    return at;
}

static void in_flight_changes(int by, int64_t at_ns) {
    in_flight_ns += (double)in_flight * (double)(at_ns - in_flight_since_ns);
    in_flight_since_ns = at_ns;
    in_flight += (uint32_t)by;
    if (in_flight > max_in_flight) max_in_flight = in_flight;
}

static struct row *new_row(const struct request *r, struct connection *c, int64_t received_ns) {
    errno = 0;
    if (requests == (uint64_t)opt.max_requests) die("more requests than --max-requests");
    struct row *row = &rows[requests++];
    memcpy(row->id, r->id, ID_LEN);
    row->received_ns = received_ns;
    row->fd = (uint32_t)c->fd;
    row->tokens_at = tokens_used;
    if (opt.token_times && (tokens_used += c->wanted) > TOKEN_TIMES) die("more tokens than can be remembered");
    in_flight_changes(1, received_ns);
    row->in_flight = in_flight;
    return row;
}

static void write_token_times(void) {
    char path[4096];
    snprintf(path, sizeof path, "%s.tokens", opt.truth);
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(token_ns, sizeof *token_ns, tokens_used, file) != tokens_used || fclose(file))
        die("cannot write the token times");
}

/* One CSV line per request; with --token-times, FILE.tokens holds their instants as 64-bit integers. */
static void write_truth(void) {
    if (!opt.truth) return;
    FILE *file = fopen(opt.truth, "w");
    if (!file) die("cannot write the truth");
    fprintf(file, "serial,request_id,received_ns,first_ns,last_ns,tokens,in_flight,blocked,fd,tokens_at\n");
    for (uint64_t i = 0; i < requests; i++) {
        const struct row *r = &rows[i];
        fprintf(file, "%" PRIu64 ",%s,%" PRId64 ",%" PRId64 ",%" PRId64 ",%u,%u,%u,%u,%" PRIu64 "\n", i, r->id,
                r->received_ns, r->first_ns, r->last_ns, r->tokens, r->in_flight, r->blocked, r->fd, r->tokens_at);
    }
    if (fclose(file)) die("cannot write the truth");
    if (opt.token_times) write_token_times();
}

static void clear_truth(void) {
    memset(rows, 0, requests * sizeof *rows);
    requests = tokens_used = 0;
}

static size_t stats_json(char *text, size_t size, bool reset) {
    int64_t now = now_ns();
    struct rusage used;
    in_flight_changes(0, now);
    getrusage(RUSAGE_SELF, &used);
    double window_s = (double)(now - window_began_ns) / 1e9;
    double cpu_s = (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
                   (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
    int n = snprintf(text, size,
                     "{\"served\":%" PRIu64 ",\"aborted\":%" PRIu64 ",\"in_flight\":%u,\"window_s\":%.9f,"
                     "\"mean_in_flight\":%.4f,\"max_in_flight\":%u,\"bytes_written\":%" PRIu64
                     ",\"connections\":%" PRIu64 ",\"busy_share\":%.4f,\"cpu_s\":%.6f,\"now_ns\":%" PRId64 "}\n",
                     served, aborted, in_flight, window_s, window_s > 0 ? in_flight_ns / 1e9 / window_s : 0.0,
                     max_in_flight, bytes_written, open_connections,
                     window_s > 0 ? 1 - (double)waited_ns / 1e9 / window_s : 0.0, cpu_s, now);
    if (reset) {
        window_began_ns = now;
        in_flight_ns = 0;
        waited_ns = 0;
        max_in_flight = in_flight;
        served = aborted = bytes_written = 0;
    }
    return (size_t)n;
}

/* ---- templates ---- */

static void find_slots(struct piece *p) {
    p->slots = 0;
    for (char *at = p->text; (at = memmem(at, p->len - (size_t)(at - p->text), SERIAL, SERIAL_LEN)); at += SERIAL_LEN)
        p->slot[p->slots++] = (size_t)(at - p->text);
}

/* Add one server-sent event, as an HTTP chunk of its own. */
__attribute__((format(printf, 2, 3))) static void add_event(struct piece *p, const char *format, ...) {
    char event[1024];
    va_list values;
    va_start(values, format);
    int n = vsnprintf(event, sizeof event, format, values);
    va_end(values);
    p->text = realloc(p->text, p->len + (size_t)n + 64);
    if (!p->text) die("out of memory");
    p->len += (size_t)sprintf(p->text + p->len, "%x\r\ndata: %s\n\n\r\n", (unsigned)n + 8, event);
    find_slots(p);
}

#define CHUNK "{\"id\":\"chatcmpl-" SERIAL "\",\"object\":\"chat.completion.chunk\",\"created\":1750000000," \
              "\"model\":\"reference\",\"choices\":"

static void build_templates(void) {
    head.text = strdup("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
                       "cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n");
    if (!head.text) die("out of memory");
    head.len = strlen(head.text);
    add_event(&role, CHUNK "[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}]}");
    add_event(&token, CHUNK "[{\"index\":0,\"delta\":{\"content\":\" " SERIAL "\"},\"finish_reason\":null}]}");
    answers.len = (size_t)opt.max_tokens * token.len;
    answers.text = malloc(answers.len);
    if (!answers.text) die("out of memory");
    for (long i = 0; i < opt.max_tokens; i++) memcpy(answers.text + (size_t)i * token.len, token.text, token.len);
}

/* The end of an answer of so many tokens; made anew only when the length changes. */
static void set_tail(long tokens) {
    if (tokens == tail_tokens) return;
    tail.len = 0;
    add_event(&tail, CHUNK "[{\"index\":0,\"delta\":{},\"finish_reason\":\"length\"}]}");
    add_event(&tail, CHUNK "[],\"usage\":{\"prompt_tokens\":16,\"completion_tokens\":%ld,\"total_tokens\":%ld}}", tokens,
              tokens + 16);
    add_event(&tail, "[DONE]");
    memcpy(tail.text + tail.len, "0\r\n\r\n", 5); /* add_event leaves room */
    tail.len += 5;
    tail_tokens = tokens;
}

static void serial_text(uint64_t serial, char *text) {
    for (int i = SERIAL_LEN - 1; i >= 0; i--, serial /= 10) text[i] = (char)('0' + serial % 10);
}

/* Put the serial number into its places, in `copies` repetitions of the piece that stand at `text`. */
static void stamp(const struct piece *p, char *text, uint32_t copies, const char *serial) {
    for (uint32_t i = 0; i < copies; i++, text += p->len)
        for (int j = 0; j < p->slots; j++) memcpy(text + p->slot[j], serial, SERIAL_LEN);
}

/* ---- connections ---- */

static void enqueue(struct queue *q, struct connection *c) {
    c->queue = q;
    c->next = NULL;
    c->previous = q->last;
    if (q->last) q->last->next = c;
    else q->first = c;
    q->last = c;
}

static void dequeue(struct connection *c) {
    if (!c->queue) return;
    if (c->previous) c->previous->next = c->next;
    else c->queue->first = c->next;
    if (c->next) c->next->previous = c->previous;
    else c->queue->last = c->previous;
    c->queue = NULL;
}

static void watch(struct connection *c, int how, uint32_t events) {
    struct epoll_event event = {.events = events, .data.fd = c->fd};
    if (epoll_ctl(poller, how, c->fd, &event)) die("epoll_ctl");
}

static void open_connection(int fd) {
    if ((size_t)fd >= connection_cap) {
        errno = 0;
        die("more connections than the limit of open files allows");
    }
    struct connection *c = calloc(1, sizeof *c);
    if (!c) die("out of memory");
    c->fd = fd;
    c->in_cap = 8192;
    c->in = malloc(c->in_cap);
    if (!c->in) die("out of memory");
    connections[fd] = c;
    open_connections++;
    int on = 1;
    if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on)) die("TCP_NODELAY");
    watch(c, EPOLL_CTL_ADD, EPOLLIN);
}

static void close_connection(struct connection *c) {
    if (c->row) {
        aborted++;
        in_flight_changes(-1, now_ns());
    }
    dequeue(c);
    connections[c->fd] = NULL;
    close(c->fd);
    open_connections--;
    free(c->in);
    free(c->out);
    free(c);
}

static void keep_for_later(struct connection *c, const char *bytes, size_t n) {
    if (c->out_len + n > c->out_cap) {
        c->out_cap = (c->out_len + n) * 2;
        c->out = realloc(c->out, c->out_cap);
        if (!c->out) die("out of memory");
    }
    memcpy(c->out + c->out_len, bytes, n);
    c->out_len += n;
}

/* Write at once what the socket takes and keep the rest; false when the peer is gone. */
static bool send_bytes(struct connection *c, const struct iovec *parts, int n) {
    ssize_t wrote = c->out_len ? 0 : n == 1 ? send(c->fd, parts->iov_base, parts->iov_len, 0) : writev(c->fd, parts, n);
    if (wrote < 0 && errno != EAGAIN && errno != EINTR) return false;
    size_t skip = wrote > 0 ? (size_t)wrote : 0;
    bytes_written += skip;
    for (int i = 0; i < n; i++) {
        size_t gone = skip < parts[i].iov_len ? skip : parts[i].iov_len;
        skip -= gone;
        if (gone < parts[i].iov_len) keep_for_later(c, (char *)parts[i].iov_base + gone, parts[i].iov_len - gone);
    }
    if (c->out_len) {
        if (c->row) c->row->blocked++;
        watch(c, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
    }
    return true;
}

static bool flush_kept(struct connection *c) {
    while (c->out_at < c->out_len) {
        ssize_t wrote = write(c->fd, c->out + c->out_at, c->out_len - c->out_at);
        if (wrote < 0) return errno == EAGAIN || errno == EINTR;
        c->out_at += (size_t)wrote;
        bytes_written += (uint64_t)wrote;
    }
    c->out_at = c->out_len = 0;
    watch(c, EPOLL_CTL_MOD, EPOLLIN);
    return !c->closing || c->row;
}

/* ---- answers ---- */

static bool finish_answer(struct connection *c, int64_t at_ns) {
    c->row->last_ns = at_ns;
    c->row = NULL;
    served++;
    in_flight_changes(-1, at_ns);
    return !c->closing || c->out_len;
}

static void note_tokens(struct connection *c, uint32_t n, int64_t at_ns) {
    if (!c->row->first_ns) c->row->first_ns = at_ns;
    if (opt.token_times)
        for (uint32_t i = 0; i < n; i++) token_ns[c->row->tokens_at + c->sent + i] = at_ns;
    c->sent += n;
    c->row->tokens = c->sent;
}

/* Write the next `n` tokens, with the head before the first and the end after the last. */
static bool send_tokens(struct connection *c, uint32_t n) {
    char serial[SERIAL_LEN];
    struct iovec parts[4];
    int count = 0;
    serial_text(c->serial, serial);
    if (!c->head_sent) {
        parts[count++] = (struct iovec){head.text, head.len};
        stamp(&role, role.text, 1, serial);
        if (opt.role) parts[count++] = (struct iovec){role.text, role.len};
        c->head_sent = true;
    }
    stamp(&token, answers.text, n, serial);
    parts[count++] = (struct iovec){answers.text, n * token.len};
    bool last = c->sent + n == c->wanted;
    if (last) {
        set_tail(c->wanted);
        stamp(&tail, tail.text, 1, serial);
        if (!opt.separate_finish) parts[count++] = (struct iovec){tail.text, tail.len};
    }
    int64_t at_ns = now_ns();
    note_tokens(c, n, at_ns);
    if (!send_bytes(c, parts, count)) return false;
    if (last && opt.separate_finish && !send_bytes(c, &(struct iovec){tail.text, tail.len}, 1)) return false;
    return !last || finish_answer(c, at_ns);
}

static bool send_json(struct connection *c, const char *json, size_t n) {
    char header[128];
    int len = snprintf(header, sizeof header,
                       "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n", n);
    struct iovec parts[2] = {{header, (size_t)len}, {(char *)json, n}};
    return send_bytes(c, parts, 2);
}

/* The answer to a request that did not ask to stream: everything, when its last token is due. */
static bool send_whole(struct connection *c) {
    size_t room = 512 + c->wanted * (SERIAL_LEN + 1u), n;
    char *json = malloc(room), serial[SERIAL_LEN];
    if (!json) die("out of memory");
    serial_text(c->serial, serial);
    n = (size_t)sprintf(json,
                        "{\"id\":\"chatcmpl-%.12s\",\"object\":\"chat.completion\",\"created\":1750000000,"
                        "\"model\":\"reference\",\"choices\":[{\"index\":0,\"finish_reason\":\"length\","
                        "\"message\":{\"role\":\"assistant\",\"content\":\"",
                        serial);
    for (uint32_t i = 0; i < c->wanted; i++) n += (size_t)sprintf(json + n, " %.12s", serial);
    n += (size_t)sprintf(json + n,
                         "\"}}],\"usage\":{\"prompt_tokens\":16,\"completion_tokens\":%u,\"total_tokens\":%u}}\n",
                         c->wanted, c->wanted + 16);
    int64_t at_ns = now_ns();
    note_tokens(c, c->wanted, at_ns);
    bool alive = send_json(c, json, n);
    free(json);
    return alive && finish_answer(c, at_ns);
}

static bool answer_buffered(struct connection *c, int64_t seen_ns);

/* What is due on this connection now. */
static void take_turn(struct connection *c, int64_t seen_ns) {
    bool alive = c->streams ? send_tokens(c, opt.together ? c->wanted : 1) : send_whole(c);
    while (alive && c->row && !opt.itl_ns) alive = send_tokens(c, 1); /* as fast as can be */
    if (alive && c->row) {
        c->due_ns += opt.itl_ns;
        enqueue(&next_tokens, c);
    } else if (alive) {
        alive = answer_buffered(c, seen_ns);
    }
    if (!alive) close_connection(c);
}

static struct connection *earliest(void) {
    struct connection *a = first_tokens.first, *b = next_tokens.first;
    if (!a || !b) return a ? a : b;
    return a->due_ns < b->due_ns ? a : b;
}

/* ---- requests ---- */

static bool named(const char *line, const char *end, const char *name, const char **value) {
    size_t n = strlen(name);
    if ((size_t)(end - line) <= n || line[n] != ':' || strncasecmp(line, name, n)) return false;
    for (line += n + 1; line < end && (*line == ' ' || *line == '\t'); line++) continue;
    *value = line;
    return true;
}

static void copy_id(char *id, const char *value, const char *end) {
    size_t n = (size_t)(end - value) < ID_LEN - 1 ? (size_t)(end - value) : ID_LEN - 1;
    for (size_t i = 0; i < n; i++) id[i] = value[i] == ',' || value[i] == '"' || value[i] < ' ' ? '_' : value[i];
    id[n] = 0;
}

static void read_header(struct request *r, const char *line, const char *end) {
    const char *value;
    if (named(line, end, "content-length", &value)) r->body_len = strtoul(value, NULL, 10);
    else if (named(line, end, "x-request-id", &value)) copy_id(r->id, value, end);
    else if (named(line, end, "connection", &value)) r->closing = !strncasecmp(value, "close", 5);
    else if (named(line, end, "transfer-encoding", &value)) r->unsized = true;
    else if (named(line, end, "expect", &value)) r->expects = true;
}

/* Read the request at the front of the buffer. False while it is not complete; `unsized` asks for refusal. */
static bool parse_request(struct connection *c, struct request *r) {
    memset(r, 0, sizeof *r);
    char *end = memmem(c->in, c->in_len, "\r\n\r\n", 4);
    if (!end) return false;
    char *line = memchr(c->in, '\n', c->in_len), *space = memchr(c->in, ' ', (size_t)(line - c->in));
    r->method = r->path = c->in;
    if (space) {
        r->path = space + 1;
        r->path_len = strcspn(r->path, " \r");
    }
    while (line < end) {
        char *start = line + 1;
        line = memchr(start, '\n', (size_t)(end + 2 - start));
        if (!line) break;
        read_header(r, start, line - 1);
    }
    r->body = end + 4;
    r->whole = (size_t)(r->body - c->in) + r->body_len;
    if (r->body_len > REQUEST_CAP) r->unsized = true;
    return r->unsized || r->whole <= c->in_len;
}

static const char *after(const struct request *r, const char *key) {
    const char *at = memmem(r->body, r->body_len, key, strlen(key)), *end = r->body + r->body_len;
    if (!at) return NULL;
    for (at += strlen(key); at < end && (*at == ' ' || *at == ':'); at++) continue;
    return at < end ? at : NULL;
}

static uint32_t wanted_tokens(const struct request *r) {
    const char *value = NULL;
    if (opt.tokens_from_body) {
        value = after(r, "\"max_completion_tokens\"");
        if (!value) value = after(r, "\"max_tokens\"");
    }
    long n = value ? strtol(value, NULL, 10) : opt.tokens;
    return (uint32_t)(n < 1 ? 1 : n > opt.max_tokens ? opt.max_tokens : n);
}

static bool begin_answer(struct connection *c, const struct request *r, int64_t seen_ns) {
    const char *stream = after(r, "\"stream\"");
    c->streams = stream && *stream == 't';
    c->wanted = wanted_tokens(r);
    c->sent = 0;
    c->head_sent = false;
    c->serial = requests;
    c->row = new_row(r, c, seen_ns);
    c->due_ns = seen_ns + opt.ttft_ns;
    if (c->streams && opt.headers_first) {
        c->head_sent = true;
        char serial[SERIAL_LEN];
        serial_text(c->serial, serial);
        stamp(&role, role.text, 1, serial);
        struct iovec parts[2] = {{head.text, head.len}, {role.text, role.len}};
        if (!send_bytes(c, parts, opt.role ? 2 : 1)) return false;
    }
    enqueue(&first_tokens, c);
    return true;
}

static bool answer_get(struct connection *c, const struct request *r) {
    char json[1024];
    size_t n;
    bool asks = memchr(r->path, '?', r->path_len) != NULL;
    if (!strncmp(r->path, "/stats", 6)) {
        n = stats_json(json, sizeof json, asks);
    } else if (!strncmp(r->path, "/truth", 6)) {
        write_truth();
        n = (size_t)sprintf(json, "{\"requests\":%" PRIu64 "}\n", requests);
        if (asks && !in_flight) clear_truth();
    } else {
        n = (size_t)sprintf(json, "{\"object\":\"list\",\"data\":[{\"id\":\"reference\",\"object\":\"model\","
                                  "\"created\":1750000000,\"owned_by\":\"fmgauge\"}]}\n");
    }
    return send_json(c, json, n) && !r->closing;
}

static bool refuse(struct connection *c) {
    static const char text[] = "HTTP/1.1 411 Length Required\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    send_bytes(c, &(struct iovec){(char *)text, sizeof text - 1}, 1);
    return false;
}

/* Answer what the buffer holds, unless an answer is under way; false when the connection is to be closed. */
static bool answer_buffered(struct connection *c, int64_t seen_ns) {
    struct request r;
    while (!c->row && c->in_len && parse_request(c, &r)) {
        if (r.unsized) return refuse(c);
        bool posts = !strncmp(r.method, "POST ", 5);
        c->closing = r.closing && posts;
        if (!(posts ? begin_answer(c, &r, seen_ns) : answer_get(c, &r))) return false;
        c->in_len -= r.whole;
        memmove(c->in, c->in + r.whole, c->in_len);
    }
    if (!c->row && c->in_len && r.expects)
        return send_bytes(c, &(struct iovec){(char *)"HTTP/1.1 100 Continue\r\n\r\n", 25}, 1);
    return true;
}

static bool read_some(struct connection *c, int64_t seen_ns) {
    if (c->in_len == c->in_cap) {
        if (c->in_cap > REQUEST_CAP) return false;
        c->in_cap *= 2;
        c->in = realloc(c->in, c->in_cap);
        if (!c->in) die("out of memory");
    }
    ssize_t n = read(c->fd, c->in + c->in_len, c->in_cap - c->in_len);
    if (n < 0) return errno == EAGAIN || errno == EINTR;
    if (n == 0) return false;
    c->in_len += (size_t)n;
    return answer_buffered(c, seen_ns);
}

static void accept_all(void) {
    int fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) open_connection(fd);
    if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED) die("accept");
}

static void connection_event(int fd, uint32_t events, int64_t seen_ns) {
    struct connection *c = connections[fd];
    if (!c) return; /* closed earlier in this turn */
    bool alive = true;
    if (events & EPOLLOUT) alive = flush_kept(c);
    if (alive && events & (EPOLLIN | EPOLLHUP | EPOLLERR)) alive = read_some(c, seen_ns);
    if (!alive) close_connection(c);
}

/* ---- the loop ---- */

/* Sleep until a little before the next token is due; the rest is spun away, for the sake of precision. With
 * --never-sleep all is: to wake a sleeping core costs a client on a virtual machine up to 20 us of its own time. */
static int wait_for_events(struct epoll_event *events, int64_t *seen_ns) {
    struct connection *next = earliest();
    int64_t began_ns = now_ns();
    struct timespec timeout = {0, 0}, *limit = next || opt.never_sleep ? &timeout : NULL;
    if (next && !opt.never_sleep) {
        int64_t left = next->due_ns - began_ns - opt.spin_ns;
        if (left > 0) timeout = (struct timespec){left / 1000000000, left % 1000000000};
    }
    int n = (int)syscall(SYS_epoll_pwait2, poller, events, EVENTS_PER_TURN, limit, NULL, 0);
    if (n < 0 && errno != EINTR) die("epoll_pwait2 (Linux 5.11 or newer is needed)");
    *seen_ns = now_ns();
    waited_ns += *seen_ns - began_ns;
    return n < 0 ? 0 : n;
}

static void send_what_is_due(void) {
    for (int i = 0; i < TOKENS_PER_TURN; i++) {
        struct connection *c = earliest();
        int64_t now = now_ns();
        if (!c || c->due_ns > now) return;
        dequeue(c);
        if (!c->streams && ++c->sent < c->wanted) { /* waits gap by gap for its last token's time, unwritten */
            c->due_ns += opt.itl_ns;
            enqueue(&next_tokens, c);
            continue;
        }
        if (!c->streams) c->sent = 0;
        take_turn(c, now);
    }
}

static void serve(void) {
    struct epoll_event events[EVENTS_PER_TURN];
    for (;;) {
        int64_t seen_ns;
        int n = wait_for_events(events, &seen_ns);
        for (int i = 0; i < n; i++) {
            if (events[i].data.fd == signals) return;
            if (events[i].data.fd == listener) accept_all();
            else connection_event(events[i].data.fd, events[i].events, seen_ns);
        }
        send_what_is_due();
    }
}

/* ---- set-up ---- */

static void add_to_poller(int fd) {
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event)) die("epoll_ctl");
}

static void listen_on_loopback(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)opt.port)};
    socklen_t size = sizeof address;
    int on = 1;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (listener < 0) die("socket");
    if (setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on)) die("SO_REUSEADDR");
    /* Accepted sockets inherit it. BBR, where it is the default, paces: it holds back what was written. */
    if (setsockopt(listener, IPPROTO_TCP, TCP_CONGESTION, "reno", 4)) die("TCP_CONGESTION");
    if (bind(listener, (struct sockaddr *)&address, size)) die("bind");
    if (listen(listener, 8192)) die("listen");
    if (getsockname(listener, (struct sockaddr *)&address, &size)) die("getsockname");
    printf("listening on 127.0.0.1:%d\n", ntohs(address.sin_port));
    fflush(stdout);
}

static void take_signals(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    if (sigprocmask(SIG_BLOCK, &set, NULL)) die("sigprocmask");
    signals = signalfd(-1, &set, SFD_CLOEXEC);
    if (signals < 0) die("signalfd");
    signal(SIGPIPE, SIG_IGN);
}

static void set_up(void) {
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files)) die("getrlimit");
    files.rlim_cur = files.rlim_max < 65536 ? files.rlim_max : 65536;
    if (setrlimit(RLIMIT_NOFILE, &files)) die("setrlimit");
    connection_cap = files.rlim_cur;
    connections = calloc(connection_cap, sizeof *connections);
    if (!connections) die("out of memory");
    rows = reserve((size_t)opt.max_requests * sizeof *rows);
    if (opt.token_times) token_ns = reserve((size_t)TOKEN_TIMES * sizeof *token_ns);
    prctl(PR_SET_TIMERSLACK, 1UL); /* ns; the default would add 50 us to every wait */
    build_templates();
    take_signals();
    poller = epoll_create1(EPOLL_CLOEXEC);
    if (poller < 0) die("epoll_create1");
    listen_on_loopback();
    add_to_poller(listener);
    add_to_poller(signals);
    window_began_ns = in_flight_since_ns = now_ns();
}

static const char usage[] =
    "usage: reference_server [options]\n"
    "  --port N             0 (default): any free one; the first line printed names it\n"
    "  --ttft-ms T          first token T ms after the request (default 0: at once)\n"
    "  --itl-ms I           then one every I ms (default 0: at once, still one write each)\n"
    "  --tokens N           length of every answer (default 64)\n"
    "  --tokens-from-body   let max_completion_tokens or max_tokens of the body decide\n"
    "  --max-tokens N       longest answer (default 4096)\n"
    "  --together           all tokens of an answer in one write, T ms after the request\n"
    "  --headers-first      write the header when the request is there, not with the first token\n"
    "  --role               begin with a chunk that holds only the role\n"
    "  --separate-finish    write finish_reason, usage and [DONE] after the last token, not with it\n"
    "  --truth FILE         where the ground truth goes (CSV)\n"
    "  --token-times        note every token's time too (FILE.tokens: 64-bit integers, ns)\n"
    "  --max-requests N     how many can be remembered (default 4000000)\n"
    "  --never-sleep        spin all the time: no client pays for waking this core\n"
    "  --spin-us N          spin through the last N us before a token is due (default 60)\n";

static int64_t milliseconds(const char *text) { return (int64_t)(strtod(text, NULL) * 1e6); }

static void set_option(int key, const char *value) {
    switch (key) {
    case 'p': opt.port = atoi(value); break;
    case 't': opt.ttft_ns = milliseconds(value); break;
    case 'i': opt.itl_ns = milliseconds(value); break;
    case 'n': opt.tokens = atol(value); break;
    case 'm': opt.max_tokens = atol(value); break;
    case 'r': opt.max_requests = atol(value); break;
    case 's': opt.spin_ns = milliseconds(value) / 1000; break;
    case 'f': opt.truth = value; break;
    case 0: break; /* a flag: getopt has set it */
    default: fputs(usage, stderr); exit(2);
    }
}

static void read_options(int argc, char **argv) {
    int never_sleep = 0, together = 0, role_chunk = 0, early = 0, separate = 0, from_body = 0, times = 0, key;
    const struct option known[] = {{"port", 1, NULL, 'p'}, {"ttft-ms", 1, NULL, 't'}, {"itl-ms", 1, NULL, 'i'},
        {"tokens", 1, NULL, 'n'}, {"max-tokens", 1, NULL, 'm'}, {"max-requests", 1, NULL, 'r'},
        {"spin-us", 1, NULL, 's'}, {"truth", 1, NULL, 'f'}, {"together", 0, &together, 1}, {"never-sleep", 0, &never_sleep, 1}, {"role", 0, &role_chunk, 1},
        {"headers-first", 0, &early, 1}, {"separate-finish", 0, &separate, 1},
        {"tokens-from-body", 0, &from_body, 1}, {"token-times", 0, &times, 1}, {"help", 0, NULL, 'h'}, {0, 0, 0, 0}};
    while ((key = getopt_long(argc, argv, "", known, NULL)) != -1) set_option(key, optarg);
    opt.never_sleep = never_sleep;
    opt.together = together;
    opt.role = role_chunk;
    opt.headers_first = early;
    opt.separate_finish = separate;
    opt.tokens_from_body = from_body;
    opt.token_times = times;
    if (opt.tokens > opt.max_tokens) opt.max_tokens = opt.tokens;
    if (opt.port < 0 || opt.ttft_ns < 0 || opt.itl_ns < 0 || opt.tokens < 1 || opt.max_requests < 1 || optind < argc)
        set_option('h', NULL);
}

int main(int argc, char **argv) {
    read_options(argc, argv);
    set_up();
    serve();
    write_truth();
    return 0;
}
