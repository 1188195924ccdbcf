import io.grpc.stub.ClientCallStreamObserver;
import io.grpc.stub.ClientResponseObserver;
import java.util.Optional;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.function.Consumer;

/** Both halves of a call for a program that waits: for each answer, and for room to send. */
final class Call<Q, R> implements ClientResponseObserver<Q, R> {
  private final BlockingQueue<Optional<R>> answers = new LinkedBlockingQueue<>();
  private ClientCallStreamObserver<Q> requests;
  private Throwable failure;
  private boolean over;

  @Override public void beforeStart(ClientCallStreamObserver<Q> requests) {
    this.requests = requests;
    requests.disableAutoRequestWithInitial(1);
    requests.setOnReadyHandler(() -> { synchronized (this) { notifyAll(); } });
  }

  @Override public void onNext(R answer) { answers.add(Optional.of(answer)); }
  @Override public void onError(Throwable error) { failure = error; onCompleted(); }
  @Override public synchronized void onCompleted() {
    over = true;
    notifyAll();
    answers.add(Optional.empty());
  }

  /** Waits while the stream is full, so that memory stays small however slow the server is. */
  synchronized void send(Q request) {
    try {
      while (!over && !requests.isReady()) wait();
    } catch (InterruptedException error) { throw new IllegalStateException(error); }
    if (!over) requests.onNext(request);
  }

  void each(Consumer<R> react) throws Throwable {
    for (Optional<R> next; (next = answers.take()).isPresent(); requests.request(1))
      react.accept(next.get());
    if (failure != null) throw failure;
  }
}
