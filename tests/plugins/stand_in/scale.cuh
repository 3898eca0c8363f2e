constexpr float kScale = 2.0f;
