/* The least that a client can do: a closed loop against reference_server, to show what the server can give.
 *
 * One thread, epoll, a fixed number of connections with one request each; the end of an answer sends the next.
 * It notes when each request was handed to its socket and when each read that held tokens returned, on
 * CLOCK_MONOTONIC, and knows the one form of answer that reference_server gives, nothing of HTTP or JSON beyond it.
 * At the end it prints one line of JSON, and with --out writes the times of every request (CSV, and FILE.tokens).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define ID_DIGITS 12
#define MAX_REQUESTS (1u << 22)
#define MAX_TOKENS (1u << 29)
#define BUFFER (1u << 18)
#define END "0\r\n\r\n"
#define TOKEN "\"delta\":{\"content\":"

struct row {
    int64_t sent_ns, first_ns, last_ns;
    uint64_t tokens_at;
    uint32_t tokens;
};

struct connection {
    int fd;
    size_t held;
    uint32_t row;
    char *buffer;
};

static int port;
static long in_flight = 64, most_tokens = 4096;
static int spin;
static double seconds = 5, ramp_s;
static const char *out;
static struct row *rows;
static int64_t *token_ns;
static uint32_t sent;
static uint64_t done, tokens, tokens_used;
static char request[1024];
static size_t request_len;
static char *request_id;

static _Noreturn void die(const char *what) {
    fprintf(stderr, "reference_client: %s%s%s\n", what, errno ? ": " : "", errno ? strerror(errno) : "");
    exit(1);
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void *reserve(size_t bytes) {
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) die("cannot reserve memory");
    madvise(at, bytes, MADV_NOHUGEPAGE);
    return at;
}

static void build_request(void) {
    static const char body[] = "{\"model\":\"reference\",\"messages\":[{\"role\":\"user\",\"content\":\"Say something.\"}],"
                               "\"stream\":true,\"stream_options\":{\"include_usage\":true},\"max_tokens\":64}";
    request_len = (size_t)snprintf(request, sizeof request,
                                   "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:%d\r\n"
                                   "content-type: application/json\r\nx-request-id: %0*d\r\n"
                                   "content-length: %zu\r\n\r\n%s",
                                   port, ID_DIGITS, 0, sizeof body - 1, body);
    request_id = strstr(request, "x-request-id: ") + strlen("x-request-id: ");
}

static void send_next(struct connection *c) {
    errno = 0;
    if (sent == MAX_REQUESTS) die("more requests than can be remembered");
    c->row = sent++;
    c->held = 0;
    uint32_t id = c->row;
    for (int i = ID_DIGITS - 1; i >= 0; i--, id /= 10) request_id[i] = (char)('0' + id % 10);
    rows[c->row].tokens_at = tokens_used;
    if (out && (tokens_used += (uint64_t)most_tokens) > MAX_TOKENS) die("more tokens than can be remembered");
    rows[c->row].sent_ns = now_ns();
    if (write(c->fd, request, request_len) != (ssize_t)request_len) die("write");
}

/* Count and time the tokens of the complete events in the buffer; keep what follows the last one. */
static void take_events(struct connection *c, int64_t at_ns) {
    struct row *row = &rows[c->row];
    char *event = c->buffer, *end, *stop = c->buffer + c->held;
    while ((end = memmem(event, (size_t)(stop - event), "\n\n\r\n", 4))) {
        if (memmem(event, (size_t)(end - event), TOKEN, strlen(TOKEN))) {
            if (!row->first_ns) row->first_ns = at_ns;
            row->last_ns = at_ns;
            if (out && row->tokens < most_tokens) token_ns[row->tokens_at + row->tokens] = at_ns;
            row->tokens++;
        }
        event = end + 4;
    }
    c->held = (size_t)(stop - event);
    memmove(c->buffer, event, c->held);
}

/* Read what there is; true when the answer is complete. */
static bool read_answer(struct connection *c) {
    ssize_t n = read(c->fd, c->buffer + c->held, BUFFER - c->held);
    int64_t at_ns = now_ns();
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return false;
    if (n <= 0) die("the server closed a connection");
    c->held += (size_t)n;
    if (c->held == BUFFER) die("an event is larger than the buffer");
    take_events(c, at_ns);
    return c->held == strlen(END) && !memcmp(c->buffer, END, c->held);
}

static void connect_one(struct connection *c, int poller) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int on = 1;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&address, sizeof address)) die("connect");
    if (setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on)) die("TCP_NODELAY");
    c->buffer = malloc(BUFFER);
    if (!c->buffer) die("out of memory");
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &event)) die("epoll_ctl");
}

static struct connection *connect_all(int poller) {
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files)) die("getrlimit");
    files.rlim_cur = files.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &files)) die("setrlimit");
    struct connection *all = calloc((size_t)in_flight, sizeof *all);
    if (!all) die("out of memory");
    for (long i = 0; i < in_flight; i++) connect_one(&all[i], poller);
    return all;
}

/* One answer is over: count it and send the next, until the time is up. */
static void answered(struct connection *c, int64_t end_ns, long *open) {
    done++;
    tokens += rows[c->row].tokens;
    if (now_ns() < end_ns) send_next(c);
    else (*open)--;
}

/* First requests are spread evenly over the ramp, so that the connections do not march in step. */
static int begin_due(struct connection *all, long *begun, int64_t began_ns) {
    int64_t step_ns = (int64_t)(ramp_s * 1e9) / in_flight;
    while (*begun < in_flight && now_ns() >= began_ns + *begun * step_ns) send_next(&all[(*begun)++]);
    return spin || *begun < in_flight ? 0 : -1;
}

static int64_t run(void) {
    int poller = epoll_create1(EPOLL_CLOEXEC);
    if (poller < 0) die("epoll_create1");
    struct connection *all = connect_all(poller);
    struct epoll_event events[64];
    int64_t began_ns = now_ns(), end_ns = began_ns + (int64_t)((ramp_s + seconds) * 1e9);
    long begun = 0, open = in_flight;
    while (open) {
        int n = epoll_wait(poller, events, 64, begin_due(all, &begun, began_ns));
        if (n < 0 && errno != EINTR) die("epoll_wait");
        for (int i = 0; i < n; i++)
            if (read_answer(events[i].data.ptr)) answered(events[i].data.ptr, end_ns, &open);
    }
    return now_ns() - began_ns;
}

static void write_tokens(void) {
    char path[4096];
    snprintf(path, sizeof path, "%s.tokens", out);
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(token_ns, sizeof *token_ns, tokens_used, file) != tokens_used || fclose(file))
        die("cannot write the tokens' times");
}

static void write_rows(void) {
    FILE *file = fopen(out, "w");
    if (!file) die("cannot write the times");
    fprintf(file, "request_id,sent_ns,first_ns,last_ns,tokens,tokens_at\n");
    for (uint32_t i = 0; i < sent; i++)
        fprintf(file, "%0*u,%" PRId64 ",%" PRId64 ",%" PRId64 ",%u,%" PRIu64 "\n", ID_DIGITS, i, rows[i].sent_ns,
                rows[i].first_ns, rows[i].last_ns, rows[i].tokens, rows[i].tokens_at);
    if (fclose(file)) die("cannot write the times");
    write_tokens();
}

static _Noreturn void explain(void) {
    fputs("usage: reference_client --port N [--in-flight N] [--seconds S] [--ramp S] [--most-tokens N] [--spin]\n"
          "                        [--out FILE]\n",
          stderr);
    exit(2);
}

static void read_options(int argc, char **argv) {
    static const struct option known[] = {{"port", 1, NULL, 'p'}, {"in-flight", 1, NULL, 'c'},
        {"seconds", 1, NULL, 's'}, {"ramp", 1, NULL, 'r'}, {"most-tokens", 1, NULL, 'm'}, {"out", 1, NULL, 'o'},
        {"spin", 0, &spin, 1},
        {0, 0, 0, 0}};
    int key;
    while ((key = getopt_long(argc, argv, "", known, NULL)) != -1) {
        if (key == 'p') port = atoi(optarg);
        else if (key == 'c') in_flight = atol(optarg);
        else if (key == 's') seconds = strtod(optarg, NULL);
        else if (key == 'r') ramp_s = strtod(optarg, NULL);
        else if (key == 'm') most_tokens = atol(optarg);
        else if (key == 'o') out = optarg;
        else if (key) explain();
    }
    if (port < 1 || in_flight < 1 || seconds <= 0 || ramp_s < 0 || most_tokens < 1 || optind < argc) explain();
}

int main(int argc, char **argv) {
    struct rusage used;
    read_options(argc, argv);
    build_request();
    rows = reserve((size_t)MAX_REQUESTS * sizeof *rows);
    token_ns = reserve((size_t)MAX_TOKENS * sizeof *token_ns);
    double took_s = (double)run() / 1e9;
    getrusage(RUSAGE_SELF, &used);
    double cpu_s = (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
                   (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
    printf("{\"requests\":%" PRIu64 ",\"tokens\":%" PRIu64 ",\"seconds\":%.6f,\"cpu_s\":%.6f}\n", done, tokens, took_s,
           cpu_s);
    if (out) write_rows();
    return 0;
}
